"""The page of `fedspzo report`: what runs have left in their folders, as one HTML file.

`recorded` and `journal_facts` read a folder, `figures` and `tables` make of it what is shown, and
`page` puts it together with `page.html`, `page.css` and `page.js`. May import all other packages.
Only the command line imports this one.
"""
