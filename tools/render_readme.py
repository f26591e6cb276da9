"Writes README.md from nbs/index.ipynb: nbdev's own rendering needs quarto, which pip cannot install."
import json, posixpath, re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

def render(
    notebook:Path,  # in nbs/
)->str:             # Markdown
    "Prose as it is, with its links seen from the root; code in fences; nothing that is hidden."
    link = lambda m: f"]({posixpath.normpath('nbs/'+m[1])})"
    parts = []
    for cell in json.loads(notebook.read_text('utf-8'))['cells']:
        source = ''.join(cell['source']).strip()
        directives = re.findall(r'^#\s*\|\s*(.*?)\s*$', source, re.M)
        if cell['cell_type']=='markdown': parts.append(re.sub(r'\]\((?!\w+:|[/#])([^)\s]+)\)', link, source))
        elif cell['cell_type']=='code' and 'hide' not in directives:
            code = re.sub(r'^#\s*\|.*\n?', '', source, flags=re.M).strip()
            if code: parts.append(f'```python\n{code}\n```')
    return '\n\n'.join(parts) + '\n'

if __name__=='__main__': (ROOT/'README.md').write_text(render(ROOT/'nbs/index.ipynb'), 'utf-8', newline='\n')
