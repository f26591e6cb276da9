const D=JSON.parse(document.getElementById('data').textContent),
    $=q=>[...document.querySelectorAll(q)],
    root=document.querySelector('main'),
    dialog=document.querySelector('dialog'),
    url={};
for(const[k,u]of Object.entries(D.sheets))
    url[k]=URL.createObjectURL(new Blob([
    Uint8Array.from(atob(u.split(',')[1]),c=>c.charCodeAt(0))],{type:'image/webp'}));
/* what the stage shows, where no kernel keeps it */
const model=(state=>{
    const heard={};
    return{
        get:k=>state[k],
        set(k,v){
            state[k]=v;
            (heard['change:'+k]||[]).forEach(f=>f())},
        save_changes(){},
        on(e,f){(heard[e]||=[]).push(f)},
        off(){}}})({pictures:['',''],names:['',''],mode:'blend',blend:100,view:[1,.5,.5],hidden:false,choices:[],
    answer:'',pixels:D.small?128:0,alive:false});
let look=null,under=null;
    const value=n=>(document.querySelector(`input[name=${n}]:checked`)||{}).value;
function state(){
    const best=document.getElementById('best'),
        s=document.getElementById('step');
    return{
        split:value('split')??D.splits[0],
        group:value('group'),
        seed:value('seed')??String(D.seeds[0]),
        step:D.steps[s?+s.value:D.steps.length-1],
        best:!!best&&best.checked}}
function key(c,split){
    const s=state(),
        k=D.columns[c];
    return D.fixed.includes(k)?split+'|'+k:
        [split,k,s.seed,(s.best||D.ready.includes(k))&&k in D.chosen?D.chosen[k]:s.step].join('|')}
/* prompts that are drawn at the chosen steps alone: the slider would only take their pictures away */
function rest(){
    const slider=document.getElementById('step'),
        best=document.getElementById('best'),
        still=D.still.includes(value('split')??D.splits[0]);
    if(!slider||!best)return;
    slider.disabled=best.disabled=still;
    if(still)best.checked=true;
    document.getElementById('why').textContent=still?D.why[0]:best.checked?D.why[1]:''}
function draw(){
    rest();
    const s=state(),
        on=new Set($('input[name=arm]:checked').map(e=>e.value)),
        at=document.getElementById('at');
    if(at)at.textContent=s.best?'':s.step;
    root.style.setProperty('--n',Math.max(on.size,1));
    root.style.setProperty('--bar',document.querySelector('.bar2').offsetHeight+'px');
 D.columns.forEach((k,c)=>{
        D.splits.forEach((p,n)=>{
            const u=url[key(c,p)];
            for(const e of[root,dialog])e.style.setProperty(`--u${n}-${c}`,u?`url(${u})`:'none');
            const no=new Set(D.missing[key(c,p)]||[]);
            $(`button[data-s="${n}"][data-c="${c}"]`).forEach(b=>b.classList.toggle('no',!u||no.has(+b.dataset.i)))});
        const u=url[key(c,s.split)];
  document.querySelector(`th[data-k="${CSS.escape(k)}"] .fail`).textContent=
        u?'':D.failed[k+'|'+s.seed]||'not drawn'});
 document.getElementById('numbers').innerHTML=
        D.numbers[[s.split,s.group,s.seed,s.best?'chosen':s.step].join('|')]||'';
 $('tbody tr').forEach(r=>
        r.hidden=r.dataset.split!=s.split||s.group!='all'&&r.dataset.people!=s.group);
    $('[data-k]').forEach(e=>e.hidden=!on.has(e.dataset.k));
    if(look)show()}
/* a picture of a sheet, by itself */
const sheets={};
async function cut(n,i,c){
    const u=url[key(c,D.splits[n])];
    if(!u||(D.missing[key(c,D.splits[n])]||[]).includes(i))return'';
    const image=sheets[u]??=Object.assign(new Image(),{src:u}),
        whole=document.createElement('canvas');
    await image.decode();
    const side=image.naturalWidth/D.per;
    whole.width=whole.height=side;
    whole.getContext('2d').drawImage(image,i%D.per*side,Math.floor(i/D.per)*side,side,side,0,0,side,side);
    return whole.toDataURL()}
async function show(){
    const[i,c,n]=look,
        two=[under??c,c];
    document.getElementById('what').textContent=D.prompts[n][i];
    const pictures=await Promise.all(two.map(k=>cut(n,i,k)));
    if(!look||look[0]!=i||look[1]!=c||look[2]!=n)return;
    model.set('names',two.map(k=>D.titles[k]));
    model.set('pictures',pictures);
 dialog.querySelector('nav').replaceChildren(...D.columns.map((k,j)=>{
        const e=document.createElement('button');
        e.textContent=D.titles[j];
        e.hidden=hides(j);
        e.setAttribute('aria-pressed',j==c);
        e.onclick=()=>turn(j);
        return e}))}
const hides=j=>document.querySelector(`td[data-k="${CSS.escape(D.columns[j])}"]`).hidden;
/* another arm lies on the one before, so the two can be flipped */
function turn(c){
    if(c!=look[1])under=look[1];
    look=[look[0],c,look[2]];
    model.set('blend',100);
    show()}
root.addEventListener('input',e=>{
    const best=document.getElementById('best');
    if(best&&e.target.id=='step')best.checked=false;
    draw()});
    root.addEventListener('click',e=>{
        const b=e.target.closest('button[data-i]');
        if(!b||b.classList.contains('no'))return;
        look=[+b.dataset.i,+b.dataset.c,+b.dataset.s];
        if(under===null||under==look[1]||hides(under))
            under=[...D.columns.keys()].find(j=>j!=look[1]&&!hides(j))??look[1];
        model.set('blend',100);
        model.set('view',[1,.5,.5]);
        show();
        dialog.showModal();
        dialog.querySelector('.st').focus()});
dialog.addEventListener('close',()=>{
        if(look)under=look[1];
        look=null});
    dialog.addEventListener('click',e=>{if(e.target==dialog)dialog.close()});
dialog.addEventListener('keydown',e=>{
    const d={ArrowRight:1,ArrowLeft:-1}[e.key];
    if(!d||e.target.tagName=='INPUT'||model.get('view')[0]>1)return;
    e.preventDefault();
    const n=D.columns.length;
    let c=look[1];
    do c=(c+d+n)%n;
    while(hides(c));
    turn(c)},true);
    render({model,el:document.getElementById('stage')});
    draw();
    addEventListener('resize',draw)
