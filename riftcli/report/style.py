"""How pages look: readable without a network, and at the width of a phone."""

from __future__ import annotations

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 110rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } h3 { font-size: 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto } td, th { padding: .25rem .8rem; text-align: left }
th { font-weight: 600 } td { white-space: nowrap } td.best { font-weight: 700 }
tr { border-bottom: 1px solid #e3e7ee } td.n { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; height: auto } pre { background: #f5f7fa; padding: 1rem; overflow-x: auto; font-size: .85rem }
figure { margin: 1rem 0; overflow-x: auto } figcaption { font-weight: 600 } small { color: #556 }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 0 1.2rem }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)) }
.grid { align-items: start } td.n small { display: block; font-weight: 400 }
th:first-child, .results td:first-child { position: sticky; left: 0; background: #fff } th.n { text-align: right }
figcaption { overflow-wrap: anywhere } figure img { display: block }
.cautions { background: #fff4e0; border-left: 4px solid #d98200; padding: .6rem 1rem .6rem 2rem; overflow-wrap: anywhere }
abbr { text-decoration: underline dotted #99a; text-underline-offset: 3px; cursor: help }
:root { color-scheme: light dark }
@media (prefers-color-scheme: dark) {
  body, th:first-child, .results td:first-child { background: #14181f; color: #e4e8ef }
  small { color: #a8b2c1 } tr { border-color: #2c3542 }
  pre { background: #1d232d } a { color: #8cb8ff }
  figure img { background: #fff; border-radius: 4px; padding: 4px; box-sizing: border-box }
  .cautions { background: #3a2c12 }
}
@media print { nav, details summary { display: none } figure { break-inside: avoid } body { max-width: none; margin: 0 } }
.thumbs { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .8rem }
.thumbs li { width: 7rem; overflow-wrap: anywhere }
.thumbs img, .thumbs small { display: block } .thumbs img { height: 6rem; object-fit: contain }
button { font: inherit; border: 0; background: none; color: inherit; cursor: pointer; padding: 0 .3rem }
button[aria-pressed="true"] { font-weight: 700 }
nav a { margin-right: .8rem } details { margin: .4rem 0 } summary { cursor: pointer; overflow-wrap: anywhere }
"""
