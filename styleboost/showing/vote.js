const V=D.vote,
    shuffled=a=>{
        for(let i=a.length-1;i>0;i--){
            const j=Math.floor(Math.random()*(i+1));
            [a[i],a[j]]=[a[j],a[i]]}
        return a},
    lcm=(a,b)=>{
        let x=a,
            y=b;
        while(y)[x,y]=[y,x%y];
        return a/x*b};
class Voting{
    constructor(){
        this.box=document.getElementById('vote');
        this.split=D.splits.indexOf('test');
        this.at=k=>D.fixed.includes(k)?0:D.chosen[k];
        this.sheet=(k,s)=>D.fixed.includes(k)?'test|'+k:['test',k,s,this.at(k)].join('|');
        this.arms=D.columns.filter(k=>k!='truth'&&(D.fixed.includes(k)||k in D.chosen)).sort();
        this.rows=$('tbody tr[data-split="test"]');
        this.id=Math.random().toString(16).slice(2,10);
        this.votes=[];
        this.voter='';
        this.recall()}
    there(b){
        return[b.a,b.b].every(k=>{
            const s=this.sheet(k,b.seed);
            return url[s]&&!(D.missing[s]||[]).includes(b.prompt)})}
 key(v){return[v.prompt,v.seed,v.a,v.b].join('|')}
    *ballots(){
        const pairs=[];
        this.arms.forEach((a,i)=>this.arms.slice(i+1).forEach(b=>pairs.push([a,b])));
        const order=shuffled(this.rows.map((_,i)=>i)),
            q=shuffled(pairs).length,
            p=order.length,
            seeds=D.seeds.map(Number),
            begin=[];
        for(let n=0;n<q*p;n++)begin.push(Math.floor(Math.random()*seeds.length));
        for(let turn=0;turn<seeds.length;turn++)
        for(let n=0;n<q*p;n++){
            const[a,b]=pairs[n%q];
            yield{
                prompt:order[(n+Math.floor(n/lcm(q,p)))%p],
                seed:seeds[(begin[n]+turn)%seeds.length],
                a,b,
                left:Math.random()<.5?'a':'b'}}}
 begin(){
        const done=new Set(this.votes.map(v=>this.key(v)));
        this.coming=[...this.ballots()].filter(b=>!done.has(this.key(b))&&this.there(b));
        this.next()}
    next(){
        this.ballot=this.coming.shift();
        this.answers={};
        this.draw()}
    paint(e,k,i){
        const c=D.columns.indexOf(k),
            tile=document.querySelector(`button[data-s="${this.split}"][data-i="${i}"][data-c="${c}"]`);
        for(const p of['backgroundSize','backgroundPosition'])e.style[p]=tile.style[p];
        e.style.backgroundImage=`url(${url[this.sheet(k,this.ballot.seed)]})`}
    draw(){
        const b=this.ballot,
            n=new Set(this.votes.map(v=>this.key(v))).size;
        document.getElementById('judged').textContent=n+(n==1?' pair judged':' pairs judged');
        document.getElementById('asking').hidden=!b;
        document.getElementById('asked').textContent=b?
        this.rows[b.prompt].querySelector('th').textContent:
        'You have judged every pair; thank you. Download your votes below.';
        this.box.querySelectorAll('fieldset button').forEach(e=>e.setAttribute('aria-pressed',
        this.answers[e.parentNode.dataset.q]==e.dataset.side));
        if(!b)return;
        const sides=b.left=='a'?[b.a,b.b]:[b.b,b.a];
        this.box.querySelectorAll('.one').forEach((e,i)=>this.paint(e,sides[i],b.prompt))}
    answer(q,side){
        const b=this.ballot;
        this.answers[q]=side;
        if(Object.keys(this.answers).length<Object.keys(V.questions).length)return this.draw();
        for(const[question,s]of Object.entries(this.answers))
        this.votes.push({
            question,
            prompt:b.prompt,
            seed:b.seed,
            a:b.a,
            b:b.b,
            step_a:this.at(b.a),
            step_b:this.at(b.b),
            left:b.left,
            answer:s=='tie'?'tie':s=='left'?b.left:b.left=='a'?'b':'a',
            at:new Date().toISOString().replace('Z','+00:00')});
        this.keep();
        this.next()}
    undo(){
        if(!this.votes.length)return;
        const last=this.key(this.votes[this.votes.length-1]);
        this.votes=this.votes.filter(v=>this.key(v)!=last);
        this.keep();
        this.begin()}
    named(name){
        this.voter=name.trim().replace(/\s+/g,' ').slice(0,60)||'anonymous-'+this.id;
        this.keep()}
    held(){return{kind:'styleboost votes',study:V.study,voter:this.voter,votes:this.votes}}
 keep(){
        try{localStorage.setItem('styleboost votes '+V.study,JSON.stringify(this.held()))}catch(e){}}
 recall(){
        try{
            const was=JSON.parse(localStorage.getItem('styleboost votes '+V.study));
            if(was){
                this.votes=was.votes;
                this.voter=was.voter}}catch(e){}}
 save(){
        const a=document.createElement('a'),
            slug=this.voter.replace(/[^\w-]+/g,'-').slice(0,40)||'voter';
        a.href=URL.createObjectURL(new Blob([JSON.stringify(this.held())],{type:'application/json'}));
        a.download=`votes-${V.study}-${slug}.json`;
        a.click()}}
if(V){
    const voting=new Voting(),
        by=id=>document.getElementById(id),
        name=by('voter');
    if(!voting.voter.startsWith('anonymous-'))name.value=voting.voter;
    by('blind').onclick=()=>{
        if(!voting.voter)voting.named(name.value);
        voting.begin();
        voting.box.showModal()};
    name.onchange=()=>voting.named(name.value);
    by('undo').onclick=()=>voting.undo();
    by('skip').onclick=()=>voting.next();
    by('save').onclick=()=>voting.save();
    by('done').onclick=()=>voting.box.close();
    $('#vote fieldset button').forEach(e=>e.onclick=()=>voting.answer(e.parentNode.dataset.q,e.dataset.side));
    $('#refs i').forEach(e=>e.style.backgroundImage=`url(${url.ref})`)}
