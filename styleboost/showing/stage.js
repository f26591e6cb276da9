/* Two pictures looked at together: one on the other, one wiped over the other, or side by side, at the same zoom.
    What is shown is the model's: Python's in a notebook, the page's own where there is none. */
const MODES={blend:'on each other',swipe:'swipe',side:'side by side'},
    HELP='Space flips, V changes the view, + and − zoom, 0 shows all of it. Drag a picture to move it.';
const between=(v,low,high)=>Math.min(high,Math.max(low,v));
function node(tag,name,...inside){
    const e=document.createElement(tag);
    e.className=name;
    e.append(...inside);
    return e}
function button(text,title,act){
    const b=node('button','',text);
    b.type='button';
    b.title=title;
    b.onclick=act;
    return b}
/* a frame holds one picture, or two on each other; each lies in a layer that the swipe cuts */
function framed(n){
    const images=[0,1].slice(0,n).map(()=>new Image()),
        layers=images.map(i=>node('div','st-layer',i)),
        names=['st-name','st-name st-right'].slice(0,n).map(c=>node('b',c)),
        edge=node('i','st-edge'),
        view=node('div','st-view',...layers,edge,...names);
    return{images,layers,names,edge,view}}
function fill(image,uri,pixels,view){
    if(image.dataset.uri==uri)return;
    image.dataset.uri=uri;
    image.hidden=!uri;
    image.alt='';
    image.draggable=false;
    image.onload=()=>{
        const w=image.naturalWidth,h=image.naturalHeight;
        image.classList.toggle('st-small',Math.max(w,h)<=pixels);
        view.style.aspectRatio=between(w/h,.5,2)};
    if(uri)image.src=uri;
    else image.removeAttribute('src')}
function render({model,el}){
    const get=k=>model.get(k),
        put=(k,v)=>{model.set(k,v);model.save_changes()},
        frames=[framed(2),framed(1)],
        root=node('div','st'),
        slider=Object.assign(node('input',''),{type:'range',min:0,max:100}),
        ends=[node('span','st-end'),node('span','st-end')],
        modes=Object.entries(MODES).map(([k,text])=>[k,button(text,'V changes the view',()=>put('mode',k))]),
        scale=node('output',''),
        choices=node('div','st-choices'),
        mix=node('label','st-mix',ends[0],slider,ends[1]),
        turn=button('Flip','Space shows the other of the two',flip);
 const bar=node('div','st-bar',
        node('span','st-modes',...modes.map(m=>m[1])),turn,
        node('span','st-zoom',button('−','smaller',()=>zoom(1/1.5)),scale,button('+','larger',()=>zoom(1.5))),mix);
    bar.title=HELP;
    root.tabIndex=0;
    root.dataset.lmSuppressShortcuts='true';
    root.setAttribute('role','group');
    root.append(node('div','st-frames',...frames.map(f=>f.view)),choices,bar);
    el.append(root);
 function flip(){put('blend',get('blend')>=50?0:100)}
    function zoom(by,x,y){
        const[k,cx,cy]=get('view'),
            to=between(k*by,1,16);
        x??=cx;
        y??=cy;
        look(to,x+(cx-x)*k/to,y+(cy-y)*k/to)}
    function look(k,x,y,save=true){
        const edge=.5/k;
        model.set('view',[k,between(x,edge,1-edge),between(y,edge,1-edge)]);
        if(save)model.save_changes()}
 function draw(){
        const[a,b]=get('pictures'),
            hidden=get('hidden'),
            names=hidden?['A','B']:get('names'),
            mode=hidden?'side':get('mode'),
            p=get('blend'),
            side=mode=='side',
            [k,x,y]=get('view');
        root.dataset.mode=mode;
        root.setAttribute('aria-label',`${names[0]} and ${names[1]}: ${MODES[mode]}`);
        [[0,0,a],[0,1,side?'':b],[1,0,b]].forEach(([f,i,uri])=>
            fill(frames[f].images[i],uri||'',get('pixels'),frames[f].view));
        const move=`translate(${(.5-x*k)*100}%,${(.5-y*k)*100}%) scale(${k})`;
        frames.forEach(f=>f.images.forEach(i=>i.style.transform=move));
        const top=frames[0].layers[1].style;
        top.opacity=mode=='blend'?p/100:1;
        top.clipPath=mode=='swipe'?`inset(0 ${100-p}% 0 0)`:'none';
        frames[0].edge.style.left=p+'%';
        frames[1].view.hidden=!side;
        const both=p>0&&p<100,
            one=both?`${names[0]} ${100-p} %, ${names[1]} ${p} %`:names[p?1:0],
            left={side:names[0],blend:one,swipe:p?names[1]:''}[mode],
            right=mode=='swipe'&&p<100?names[0]:'';
        [[0,0,left],[0,1,right],[1,0,names[1]]].forEach(([f,i,text])=>{
            frames[f].names[i].textContent=text||'';
            frames[f].names[i].hidden=!text});
        ends.forEach((e,i)=>e.textContent=names[i]||'');
        slider.value=p;
        slider.setAttribute('aria-label',`from ${names[0]} to ${names[1]}`);
        mix.hidden=turn.hidden=side;
        modes.forEach(([m,e])=>{
            e.hidden=hidden;
            e.setAttribute('aria-pressed',m==mode)});
        scale.textContent=`${+k.toFixed(1)}×`}
 function ask(){
        choices.replaceChildren(...get('choices').map((c,i)=>button(c,`key ${i+1}`,()=>put('answer',c))));
        choices.hidden=!get('choices').length}
 /* a press that moves drags: the edge of the swipe, or the picture where it is enlarged; one that does not, flips */
 function pressed(e,view){
        if(e.button)return;
        const box=view.getBoundingClientRect(),
            from=get('view'),
            at=get('blend'),
            swipes=root.dataset.mode=='swipe',
            wipes=swipes&&(from[0]==1||Math.abs(e.clientX-box.left-box.width*at/100)<16),
            dx=m=>(m.clientX-e.clientX)/box.width,
            dy=m=>(m.clientY-e.clientY)/box.height;
        let moved=false;
        const move=m=>{
            moved||=Math.hypot(m.clientX-e.clientX,m.clientY-e.clientY)>3;
            if(!moved)return;
            if(wipes)model.set('blend',between(Math.round((m.clientX-box.left)/box.width*100),0,100));
            else look(from[0],from[1]-dx(m)/from[0],from[2]-dy(m)/from[0],false)};
        const end=()=>{
            view.removeEventListener('pointermove',move);
            if(moved)model.save_changes();
            else if(root.dataset.mode=='blend')flip()};
        view.setPointerCapture(e.pointerId);
        view.addEventListener('pointermove',move);
        view.addEventListener('pointerup',end,{once:true});
        view.addEventListener('pointercancel',end,{once:true})}
 for(const{view}of frames){
        const where=e=>{
            const box=view.getBoundingClientRect(),
                [k,x,y]=get('view');
            return[x+((e.clientX-box.left)/box.width-.5)/k,y+((e.clientY-box.top)/box.height-.5)/k]};
        view.addEventListener('pointerdown',e=>pressed(e,view));
        view.addEventListener('wheel',e=>{
            if(!e.ctrlKey&&!e.metaKey)return;
            e.preventDefault();
            zoom(Math.exp(-e.deltaY/200),...where(e))},{passive:false})}
 slider.addEventListener('input',()=>put('blend',+slider.value));
    root.addEventListener('keydown',e=>{
        if(e.ctrlKey||e.metaKey||e.altKey)return;
        const[k,x,y]=get('view'),
            on=e.target==slider||e.target.tagName=='BUTTON',
            step=.1/k,
            all=Object.keys(MODES),
            choice=get('choices')[+e.key-1];
        const acts={
            v:()=>put('mode',all[(all.indexOf(get('mode'))+1)%all.length]),
            f:flip,
            '+':()=>zoom(1.5),'=':()=>zoom(1.5),'-':()=>zoom(1/1.5),'0':()=>look(1,.5,.5),
            ...on?{}:{' ':flip},
            ...on||k==1?{}:{
                ArrowLeft:()=>look(k,x-step,y),ArrowRight:()=>look(k,x+step,y),
                ArrowUp:()=>look(k,x,y-step),ArrowDown:()=>look(k,x,y+step)},
            ...choice?{[e.key]:()=>put('answer',choice)}:{}};
        const act=acts[e.key]||acts[e.key.toLowerCase()];
        if(!act)return;
        e.preventDefault();
        e.stopPropagation();
        act()});
 /* who clicks a picture of the panel around wants to see it: the stage comes into view, where it is not */
    const called=e=>{
        const tile=e.target.closest?.('.sb-tile'),
            panel=el.closest('.sb');
        if(tile&&panel&&panel.contains(tile))root.scrollIntoView({block:'nearest'})};
    document.addEventListener('click',called);
 const seen=['pictures','names','mode','blend','view','hidden','pixels'];
    seen.forEach(k=>model.on('change:'+k,draw));
    model.on('change:choices',ask);
    draw();
    ask();
    put('alive',true);
    return()=>{
        document.removeEventListener('click',called);
        seen.forEach(k=>model.off('change:'+k,draw));
        model.off('change:choices',ask)}}
export default{render};
