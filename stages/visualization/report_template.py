"""The template of the HTML report: style and script. {{ and }} are braces; the other names are filled in."""

# ruff: noqa: E501

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · hmr</title>
<style>
:root {{ --paper:#f4f4f1; --card:#fff; --ink:#1c1e21; --soft:#62666d; --line:#e0e0db; --mark:#2f6fb0; --bad:#a8321f; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper:#15171a; --card:#1f2226; --ink:#e9eaec; --soft:#9aa0a8; --line:#33373d; --mark:#7db4ea; --bad:#ff9a86; }}
}}
* {{ box-sizing:border-box }}
body {{ margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }}
main, header, footer {{ max-width:1320px; margin:0 auto; padding:0 20px }}
header {{ padding-top:32px; padding-bottom:8px }}
h1 {{ font-size:28px; line-height:1.2; margin:0 0 16px; letter-spacing:-.01em }}
h2 {{ font-size:14px; font-weight:600; margin:0; padding:10px 14px; overflow-wrap:anywhere }}
.tiles {{ display:flex; flex-wrap:wrap; gap:10px }}
.tiles div {{ background:var(--card); border:1px solid var(--line); border-radius:10px; padding:10px 16px }}
.tiles b {{ display:block; font-size:22px; font-variant-numeric:tabular-nums; line-height:1.25 }}
.tiles span {{ color:var(--soft); font-size:13px }}
.cards {{ display:grid; grid-template-columns:repeat(auto-fill, minmax(min(100%, 560px), 1fr)); gap:18px; padding:18px 0;
  align-items:start }}
.card {{ background:var(--card); border:1px solid var(--line); border-radius:12px; overflow:hidden }}
.flip {{ display:block; position:relative; width:100%; padding:0; border:0; background:none; cursor:pointer }}
.flip img {{ display:block; width:100%; height:auto }}
.flip .photo {{ position:absolute; inset:0; height:100%; opacity:0; transition:opacity .12s }}
.flip.bare .photo {{ opacity:1 }}
.flip::after {{ content:"tap: image only"; position:absolute; right:8px; bottom:8px; padding:2px 9px; border-radius:99px;
  font-size:12px; color:#fff; background:rgba(0,0,0,.55) }}
.flip.bare::after {{ content:"tap: bodies" }}
.flip:focus-visible {{ outline:3px solid var(--mark); outline-offset:-3px }}
video {{ display:block; width:100%; background:#000 }}
.views {{ display:grid; grid-template-columns:1fr 1fr; gap:1px; background:var(--line); border-top:1px solid var(--line);
  border-bottom:1px solid var(--line) }}
.views figure {{ margin:0; position:relative }}
.views img {{ display:block; width:100%; height:auto }}
.views figcaption {{ position:absolute; left:8px; bottom:5px; font-size:12px; color:#62666d }}
.wide {{ overflow-x:auto }}
table {{ border-collapse:collapse; width:100%; font-size:13.5px; font-variant-numeric:tabular-nums }}
th {{ text-align:left; font-weight:500; color:var(--soft); padding:8px 14px 4px; white-space:nowrap }}
td {{ padding:5px 14px; border-top:1px solid var(--line); white-space:nowrap }}
td i {{ display:inline-block; width:12px; height:12px; border-radius:3px; margin-right:8px; vertical-align:-1px }}
.bar {{ display:inline-block; width:52px; height:6px; border-radius:3px; background:var(--line); margin-right:8px;
  vertical-align:2px; overflow:hidden }}
.bar s {{ display:block; height:100%; background:var(--mark) }}
.bad, tr.bad td {{ color:var(--bad); white-space:normal; border-top:0 }}
p.bad, .note, .empty {{ padding:4px 14px 12px; margin:0; overflow-wrap:anywhere }}
.note, .empty {{ color:var(--soft) }}
.empty {{ font-size:17px; padding:30px 0 }}
h3 {{ font-size:15px; margin:14px 0 8px }}
details {{ background:var(--card); border:1px solid var(--line); border-radius:10px; margin-bottom:10px; padding:10px 14px }}
summary {{ cursor:pointer; font-weight:600 }}
dl {{ display:grid; grid-template-columns:max-content 1fr; gap:4px 18px; margin:10px 0 4px; font-size:13.5px }}
dt {{ color:var(--soft) }}
dd {{ margin:0; overflow-wrap:anywhere }}
footer {{ padding-bottom:40px; color:var(--soft); font-size:13px }}
@media (max-width:600px) {{
  main, header, footer {{ padding-left:12px; padding-right:12px }}
  h1 {{ font-size:23px }} .tiles div {{ padding:8px 12px }} .tiles b {{ font-size:18px }}
  th, td {{ padding-left:10px; padding-right:8px }} .bar {{ width:34px }}
  dl {{ grid-template-columns:1fr; gap:0 }} dd {{ margin-bottom:6px }}
}}
@media print {{ .flip::after {{ display:none }} .card {{ break-inside:avoid }} }}
</style></head><body>
<header><h1>{title}</h1><div class="tiles">{tiles}</div></header>
<main><div class="cards">{videos}{cards}</div></main>
<footer><h3>How this was made</h3>{provenance}<p>{licence}</p></footer>
<script>
document.querySelectorAll(".flip").forEach(b => b.addEventListener("click", () => b.classList.toggle("bare")));
</script>
</body></html>
"""
