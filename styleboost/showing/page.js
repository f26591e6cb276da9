const D=JSON.parse(document.getElementById('data').textContent),
    $=q=>[...document.querySelectorAll(q)],
    root=document.querySelector('main'),
    dialog=document.querySelector('dialog'),
    url={};
for(const[k,u]of Object.entries(D.sheets))
    url[k]=URL.createObjectURL(new Blob([
    Uint8Array.from(atob(u.split(',')[1]),c=>c.charCodeAt(0))],{type:'image/webp'}));
let look=null;
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
function draw(){
    const s=state(),
        on=new Set($('input[name=arm]:checked').map(e=>e.value)),
        at=document.getElementById('at');
    if(at)at.textContent=s.best?'':s.step;
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
function show(){
    const[i,c,n]=look,
        b=document.querySelector(`button[data-s="${n}"][data-i="${i}"][data-c="${c}"]`),
        big=document.getElementById('big');
    for(const p of['backgroundImage','backgroundSize','backgroundPosition'])big.style[p]=b.style[p];
    document.getElementById('what').textContent=b.title;
 dialog.querySelector('nav').replaceChildren(...D.columns.map((k,j)=>{
        const e=document.createElement('button');
        e.textContent=D.titles[j];
        e.hidden=document.querySelector(`td[data-k="${CSS.escape(k)}"]`).hidden;
        e.setAttribute('aria-pressed',j==c);
        e.onclick=()=>{look=[i,j,n];show()};
        return e}))}
root.addEventListener('input',e=>{
    const best=document.getElementById('best');
    if(best&&e.target.id=='step')best.checked=false;
    draw()});
    root.addEventListener('click',e=>{
        const b=e.target.closest('button[data-i]');
        if(b&&!b.classList.contains('no')){
            look=[+b.dataset.i,+b.dataset.c,+b.dataset.s];
            show();
            dialog.showModal()}});
dialog.addEventListener('close',()=>look=null);
    dialog.addEventListener('click',e=>{if(e.target==dialog)dialog.close()});
dialog.addEventListener('keydown',e=>{
    const d={ArrowRight:1,ArrowLeft:-1}[e.key];
    if(d){
        const n=D.columns.length;
        let c=look[1];
        do c=(c+d+n)%n;
        while(document.querySelector(`td[data-k="${CSS.escape(D.columns[c])}"]`).hidden);
        look=[look[0],c,look[2]];
        show()}});
    draw();
    addEventListener('resize',draw)
