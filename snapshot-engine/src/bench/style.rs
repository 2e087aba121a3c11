//! How the page looks. Fonts and colours are the reader's own system's: nothing is fetched.

pub(super) const STYLE: &str = "
:root{--ink:#1b1f24;--soft:#59636e;--line:#d8dee4;--back:#fff;--card:#f6f8fa;--good:#1a7f37;--bad:#b3261e;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#30363d;--back:#0d1117;--card:#161b22;--good:#3fb950;--bad:#f85149}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1000px;padding:32px 20px 64px;font:15px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--back)}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:44px 0 8px;padding-top:14px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:26px 0 6px}p{margin:6px 0}.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:18px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 16px}
.card b{display:block;font-size:22px;font-variant-numeric:tabular-nums}.card span{color:var(--soft);font-size:13px}
table{border-collapse:collapse;width:100%;margin:8px 0;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:4px 8px;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:600}th.l,td.l{text-align:left}td.w{white-space:normal}
.scroll{overflow-x:auto}
svg{width:100%;height:auto;display:block;margin:8px 0;font:12px system-ui,sans-serif}
svg text{fill:var(--soft)}svg .small{font-size:10.5px}svg .grid{stroke:var(--line);stroke-width:1}
svg .curve{fill:none;stroke-width:2;stroke-linejoin:round}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;margin:0 0 4px 4px}.key i{display:inline-block;width:18px;height:3px;margin-right:6px;vertical-align:middle;border-radius:2px}
.met{color:var(--good);font-weight:600}.missed{color:var(--bad);font-weight:600}
details{margin:8px 0}summary{cursor:pointer;color:var(--soft)}
@media(max-width:640px){body{padding:20px 14px 48px}.cards{grid-template-columns:1fr 1fr}.card{padding:8px 12px}
.goals tr{display:block;padding:6px 0;border-bottom:1px solid var(--line)}.goals tr:first-child{display:none}
.goals td{display:block;text-align:left;border:0;padding:0 4px}.goals td:first-child{font-weight:600}.goals td:nth-child(2){color:var(--soft)}}
";
