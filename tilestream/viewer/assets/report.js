const body=document.querySelector('#slides tbody'),find=document.querySelector('#find'),shown=document.querySelector('#shown');
function filter(){const words=find.value.toLowerCase().split(/\s+/).filter(Boolean);let n=0;
for(const row of body.rows){const text=row.dataset.text;const hit=words.every(w=>text.includes(w));row.hidden=!hit;n+=hit}shown.textContent=n+' of '+body.rows.length+' slides'}
find.addEventListener('input',filter);filter();
document.querySelectorAll('#slides th button').forEach((button)=>{button.addEventListener('click',()=>{const th=button.parentElement,at=th.cellIndex,down=th.getAttribute('aria-sort')==='ascending';
document.querySelectorAll('#slides th').forEach(o=>o.removeAttribute('aria-sort'));th.setAttribute('aria-sort',down?'descending':'ascending');
const key=r=>r.cells[at].dataset.v??r.cells[at].textContent;const rows=[...body.rows].sort((a,b)=>key(a).localeCompare(key(b),undefined,{numeric:true})*(down?-1:1));
const part=document.createDocumentFragment();rows.forEach(r=>part.append(r));body.append(part)})});
