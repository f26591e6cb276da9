const d=document.querySelector('dialog');
    document.querySelectorAll('img').forEach(i=>{
        i.style.cursor='zoom-in';
        i.onclick=()=>{
            const p=document.createElement('p');
            p.textContent=i.alt;
            d.replaceChildren(i.cloneNode(),p);
            d.showModal()}})
