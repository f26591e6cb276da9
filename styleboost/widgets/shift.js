/* Hears whether Shift is held when the panel around it is clicked, before the click itself is heard. */
function render({model,el}){
    const hear=e=>{
        const panel=el.closest('.sb');
        if(!panel||!panel.contains(e.target)||e.shiftKey==model.get('held'))return;
        model.set('held',e.shiftKey);
        model.save_changes()};
    document.addEventListener('click',hear,true);
    model.set('alive',true);
    model.save_changes();
    return()=>document.removeEventListener('click',hear,true)}
export default{render};
