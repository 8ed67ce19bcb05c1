"""A stand-in of the Hugging Face Hub on this machine: what `huggingface_hub` asks of its HTTP API, faults included."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(
    r'/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?'
)
_FILE = re.compile(r'/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)')


@dataclasses.dataclass
class Hub:
    """Repositories ('models/o/n' or 'datasets/o/n'), each revision's files, and what is wrong with them.

    Attributes:
      repos: repository -> revision -> path -> content.
      gated: repositories whose files only the token 'let-me-in' opens.
      broken: path -> how often its transfer breaks off half-way.
      ranges: whether ranges are heard of.
      requests: 'METHOD path range' of each request.
    """

    repos: dict
    gated: set = dataclasses.field(default_factory=set)
    broken: dict = dataclasses.field(default_factory=dict)
    ranges: bool = True
    requests: list = dataclasses.field(default_factory=list)


def commit_of(revision):
    return hashlib.sha1(revision.encode()).hexdigest()


@contextlib.contextmanager
def serve(hub):
    """Yields the address under which a `Hub` answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            hub.requests.append(f'{self.command} {self.path} {self.headers.get("Range", "")}'.strip())
            url = urlsplit(self.path)
            path = unquote(url.path)
            # A revision may have a '/', which comes quoted.
            if match := _API.match(url.path):
                self.answer_api(match, parse_qs(url.query))
            elif match := _FILE.fullmatch(url.path):
                self.answer_file(match)
            else:
                self.fail(404, '', f'no such page: {path}')

        def fail(self, status, code, message):
            headers = {'X-Error-Message': message} | ({'X-Error-Code': code} if code else {})
            self.send(status, json.dumps({'error': message}).encode(), headers)

        def find(self, kind, name, revision):
            """(revision, files), or None once it is said what is missing."""
            repo = hub.repos.get(f'{kind}/{name}')
            if repo is None:
                self.fail(401, 'RepoNotFound', 'Repository not found')
                return None
            names = {**{known: known for known in repo}, **{commit_of(known): known for known in repo}}
            if revision not in names:
                self.fail(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
                return None
            return names[revision], repo[names[revision]]

        def answer_api(self, match, query):
            found = self.find(match['kind'], match['name'], unquote(match['revision'] or 'main'))
            if found is None:
                return
            revision, files = found
            if match['what'] == 'tree':
                tree = [
                    {'type': 'file', 'path': path, 'size': len(data), 'oid': hashlib.sha1(data).hexdigest()}
                    for path, data in sorted(files.items())
                    if query.get('recursive', ['false'])[0].lower() in ('true', '1') or '/' not in path
                ]
                self.send(200, json.dumps(tree).encode(), {'Content-Type': 'application/json'})
                return
            info = {'id': match['name'], 'sha': commit_of(revision), 'private': False, 'tags': [], 'downloads': 0,
                    'siblings': [{'rfilename': path} for path in sorted(files)]}  # fmt: skip
            self.send(200, json.dumps(info).encode(), {'Content-Type': 'application/json'})

        def answer_file(self, match):
            kind = 'datasets' if match['kind'] else 'models'
            found = self.find(kind, match['name'], unquote(match['revision']))
            if found is None:
                return
            revision, files = found
            path = unquote(match['path'])
            if f'{kind}/{match["name"]}' in hub.gated and self.headers.get('Authorization') != 'Bearer let-me-in':
                self.fail(403, 'GatedRepo', 'Access to this repository is restricted')
                return
            if path not in files:
                self.fail(404, 'EntryNotFound', 'Entry not found')
                return
            data, status = files[path], 200
            headers = {'ETag': f'"{hashlib.sha1(data).hexdigest()}"', 'X-Repo-Commit': commit_of(revision)}
            if hub.ranges and (wanted := re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))):
                start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1)
                headers['Content-Range'] = f'bytes {start}-{stop}/{len(data)}'
                data, status = data[start : stop + 1], 206
            self.send(status, data, headers, breaks=self.command == 'GET' and self.breaks(path))

        def breaks(self, path):
            left = hub.broken.get(path, 0)
            hub.broken[path] = left - 1
            return left > 0

        def send(self, status, data, headers, breaks=False):
            self.send_response(status)
            for name, value in {**headers, 'Content-Length': str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == 'GET':
                self.wfile.write(data[: len(data) // 2] if breaks else data)
            if breaks:
                self.close_connection = True

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_address[1]}'
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
