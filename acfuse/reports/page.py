"""What every HTML report has in common: its style sheet, and the script that sorts and filters."""

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbf9;--card:#fff;--ink:#1c2126;--soft:#56606b;--line:#d9dde1;
--heat:#0b3d91;--good:#11714d;--bad:#b3261e;--fused:#11714d;--folded:#1a5fa8;--assumed:#7a3e9d;
--refused:#945200;--kept:#5f6872;--wash:#eef1f4;--link:#1a5fa8;--on:#fff}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1d2125;--ink:#e9edf0;--soft:#a9b3bd;
--line:#363d44;--heat:#8ab8ff;--good:#5fd3a1;--bad:#ff8f86;--fused:#5fd3a1;--folded:#8ab8ff;
--assumed:#d9a7f5;--refused:#ffbe6b;--kept:#a9b3bd;--wash:#252a30;--link:#8ab8ff;--on:#101316}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif;
overflow-wrap:anywhere}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 16px}
h1{font-size:1.35rem;margin:20px 0 8px}h2{font-size:1.15rem;margin:36px 0 4px}
h3{font-size:1rem;margin:0}
p{margin:6px 0}.soft{color:var(--soft);font-size:.92rem;max-width:75ch}
a{color:var(--link)}:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.skip{position:absolute;left:-999px}.skip:focus{left:8px;top:8px;background:var(--card);padding:8px}
.hide{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);
white-space:nowrap}
.verdict{font-size:1.1rem;font-weight:600;padding:12px 16px;border-radius:8px;
border:1px solid var(--line);border-left:8px solid var(--good);background:var(--card)}
.verdict.no{border-left-color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:12px;
margin:16px 0;padding:0;list-style:none}
.tiles li,.block{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:12px 14px}
.tiles b{display:block;font-size:1.1rem;line-height:1.3}.tiles span{display:block;color:var(--soft);
font-size:.9rem}
.strip{display:flex;flex-wrap:wrap;gap:3px;padding:0;margin:10px 0;list-style:none}
.strip a,.strip span.cell{display:block;min-width:26px;padding:3px 5px;border-radius:4px;
text-align:center;font-size:.8rem;text-decoration:none;color:var(--on);background:var(--kept)}
.strip .fused{background:var(--fused)}.strip .folded{background:var(--folded)}
.strip .assumed{background:var(--assumed)}.strip .refused{background:var(--refused)}
.strip .failed{background:var(--bad)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;padding:0;margin:6px 0;list-style:none;
font-size:.9rem}
.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;
background:var(--kept)}
.legend .fused{background:var(--fused)}.legend .folded{background:var(--folded)}
.legend .assumed{background:var(--assumed)}.legend .refused{background:var(--refused)}
.legend .failed{background:var(--bad)}
.find{position:sticky;top:0;z-index:1;background:var(--bg);padding:10px 0;margin:16px 0 0}
.find input{font:inherit;width:100%;max-width:420px;padding:8px 10px;border-radius:6px;
border:1px solid var(--soft);background:var(--card);color:var(--ink)}
.blocks{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:12px;
margin:12px 0}
@media(max-width:700px){.blocks{grid-template-columns:1fr}}
.block{min-width:0}[id]{scroll-margin-top:96px}
.block:target{border-color:var(--link)}
.tag{font-size:.85rem;color:var(--soft)}
.maps{display:flex;flex-wrap:wrap;align-items:flex-end;gap:8px 12px;margin:10px 0}
.maps figure{margin:0;text-align:center;font-size:.75rem;color:var(--soft);max-width:90px}
.maps figure svg{display:block;margin:0 auto 4px;background:var(--wash)}
.maps .to{align-self:center;font-size:1.3rem;color:var(--soft)}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:2px 12px;margin:0;font-size:.88rem}
dl.facts dt{color:var(--soft)}dl.facts dd{margin:0}dl.facts svg{vertical-align:middle}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card);
margin:10px 0}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:7px 10px;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:normal}
td.num,th.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.name,tbody th{font-weight:400;min-width:160px;overflow-wrap:anywhere}
td.long{min-width:220px;overflow-wrap:anywhere}td.hash{font:.8rem monospace;min-width:200px;
overflow-wrap:anywhere}
tbody tr:last-child>*{border-bottom:0}thead th{background:var(--wash);white-space:nowrap}
th button{all:unset;cursor:pointer;font-weight:600}
th button:focus-visible{outline:3px solid var(--link);outline-offset:2px}
th button:after{content:" \\2195";color:var(--soft)}
[aria-sort=ascending] button:after{content:" \\2191"}
[aria-sort=descending] button:after{content:" \\2193"}
.yes{color:var(--good);font-weight:600}.no{color:var(--bad)}
td .yes,td .no{font-weight:600;white-space:nowrap}
.heat path{fill:var(--heat)}
.h0{fill-opacity:.04}.h1{fill-opacity:.16}.h2{fill-opacity:.29}.h3{fill-opacity:.42}
.h4{fill-opacity:.56}.h5{fill-opacity:.7}.h6{fill-opacity:.85}
svg{max-width:100%;height:auto}svg text{fill:var(--soft);font-size:11px}
.good{fill:var(--good)}.bad{fill:var(--bad)}.track{fill:var(--line)}
.bound{stroke:var(--ink);stroke-width:1.5}.axis{stroke:var(--line);fill:none}
polyline{fill:none;stroke-width:1.7}.before{stroke:var(--soft);stroke-dasharray:4 3}
.after{stroke:var(--good)}
[hidden]{display:none!important}
footer{margin:40px auto;color:var(--soft);font-size:.88rem}
@media print{.find{display:none}.block{break-inside:avoid}}
"""

SCRIPT = """
(() => {
  const find = document.querySelector('.find');
  const field = document.getElementById('filter');
  const told = document.getElementById('shown');
  const things = [...document.querySelectorAll('[data-f]')];
  find.hidden = false;
  field.addEventListener('input', () => {
    const wanted = field.value.trim().toLowerCase();
    let shown = 0;
    for (const thing of things) {
      thing.hidden = !thing.textContent.toLowerCase().includes(wanted);
      shown += thing.hidden || thing.tagName !== 'TR' ? 0 : 1;
    }
    const rows = things.filter(thing => thing.tagName === 'TR').length;
    told.textContent = wanted ? shown + ' of ' + rows + ' rows are shown' : '';
  });
  const value = (row, column) => {
    const cell = row.children[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  const compared = (a, b) => typeof a === 'string' || typeof b === 'string'
    ? String(a).localeCompare(String(b), 'en', { numeric: true })
    : a - b;
  for (const button of document.querySelectorAll('th button')) {
    button.addEventListener('click', () => {
      const head = button.closest('th');
      const up = head.getAttribute('aria-sort') !== 'ascending';
      for (const other of head.parentNode.children) {
        if (other.hasAttribute('aria-sort')) other.setAttribute('aria-sort', 'none');
      }
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const body = head.closest('table').tBodies[0];
      const column = head.cellIndex;
      const rows = [...body.rows];
      rows.sort((a, b) => (up ? 1 : -1) * compared(value(a, column), value(b, column)));
      body.append(...rows);
    });
  }
})();
"""
