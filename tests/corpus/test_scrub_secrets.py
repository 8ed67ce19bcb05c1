"""Secrets in the forms of settings, markup, commands and statements, and what only resembles one."""

import time

import pytest

from llm_jax.corpus.document import Document
from llm_jax.corpus.scrub import FINDERS, Scrub, make
from llm_jax.corpus.scrub.secrets import secrets

# Put together here, so that nothing that scans the repository takes it for a real one.
SECRET = 'q7Rk2' + 'vXw9' + 'LmZt4'
OTHER = 'Zt8#p' + 'Kd3' + 'wQz!5'

# '@' stands for the secret.
FORMS = [
    # XML and properties
    '<password>@</password>',
    '<ns:dbPassword encrypted="false">\n    @\n</ns:dbPassword>',
    '<entry name="db.password">@</entry>',
    '<string name="api_key" translatable="false">@</string>',
    '<property name="password" value="@"/>',
    '<add key="ClientSecret" value="@" />',
    # YAML and JSON
    '- name: DB_PASSWORD\n  value: @\n',
    '- name: DB_PASSWORD\n  value: "@"\n',
    '[{"name": "API_TOKEN", "value": "@"}]',
    'password: >-\n  @\n',
    'db_password: |\n    @\n',
    '{"client_secret": "@"}',
    # Connections
    'Server=db;User Id=app;Password=@;Encrypt=true',
    '"Endpoint=sb://bus;SharedAccessKeyName=root;SharedAccessKey=@"',
    # SQL
    "CREATE USER app IDENTIFIED BY '@';",
    "ALTER USER app IDENTIFIED WITH caching_sha2_password BY '@';",
    "CREATE ROLE app LOGIN PASSWORD '@';",
    "SET PASSWORD FOR app = PASSWORD('@');",
    "create login app with password = N'@';",
    "INSERT INTO users (name, password) VALUES ('ida', '@');",
    "insert into `u` (id, `api_key`, at) values (1, 'none', now()), (2, '@', coalesce(a, b));",
    "INSERT INTO u (name, note, password) VALUES ('O''Brien' , f(1, 'a, b'), N'@')",
    # Commands and the files of tools
    'ENV API_TOKEN @',
    "ENV API_TOKEN '@'",
    'ARG TOKEN=@',
    'PGUSER=app PGPASSWORD=@ psql -h db',
    'docker run -e DB_PASSWORD=@ -p 80:80 image',
    'mysql -usvc --password=@',
    'tool --api-key "@" | tee log',
    'vault login --token @',
    'curl -u ida:@ https://host/x',
    'curl --user "ida:@" https://host/x',
    'mysqldump -h db -uroot -p@ shop',
    'sshpass -p @ ssh host',
    "sshpass -p '@' ssh host",
    'redis-cli -h cache -a @ ping',
    'docker login -u ida -p @ registry',
    'machine host.net login ida password @',
    'machine host.net\n  login ida\n  password @\n',
    '//registry.host.net/:_authToken=@',
    "export SECRET=$'@'",
    # Calls
    'curl -H "X-Api-Key: @" https://host',
    "define('DB_PASSWORD', '@');",
    'os.environ.get("API_TOKEN", "@")',
    'setenv(`API_KEY`, `@`)',
    'requests.get(url, auth=("svc", "@"))',
    'requests.get(url, auth=HTTPBasicAuth("svc", "@"))',
    "server.login('me', password='@')",
    'std::wstring password = L"@";',
    # Prose
    'The password is @.',
    'Your new API key was "@", ask for another.',
]


def scrub(text: str, kind: str, language: str = '') -> str:
    return make(Scrub())(Document(id='a', source='s', where='', text=text, kind=kind, language=language)).text


@pytest.mark.parametrize('form', FORMS)
def test_secret_goes_and_nothing_else(form):
    for kind in ('code', 'text'):
        for value in (SECRET, OTHER) if not form.startswith(('docker run', 'mysqldump')) else (SECRET,):
            assert scrub(form.replace('@', value), kind) == form.replace('@', '<SECRET>')


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('value', ['changeme', '${DB_PASSWORD}', '{{ password }}', '********', 'your-password-here'])
def test_what_stands_for_a_secret_is_left(form, value):
    text = form.replace('@', value)
    for kind in ('code', 'text'):
        assert scrub(text, kind) == text


@pytest.mark.parametrize(
    'text',
    [
        # Translations, vocabularies
        '<string name="password">Contraseña</string>',
        '<password>Пароль-учётной-записи</password>',
        '{"password": "Mot-de-passe?", "token": "##formation", "eos_token": "</s>"}',
        "t('password', 'Passwort-Wiederholung…')",
        '{"token": "Ġinternational", "unk_token": "<|unknown_9x|>"}',
        'password: "请输入您的账户密码"',
        "INSERT INTO words (token, n) VALUES ('interoperability', 12), ('two words 7Xq', 3);",
        "INSERT INTO files (name, path) VALUES ('q7Rk2vXw9LmZt4', '/a');",
        # What is said of secrets
        'The password is case-sensitive, and the token is refreshed every 3600 seconds.',
        'An API key is a string such as those of section 4.2.1b, and the secret key is never stored.',
        'login (see below), password (at least 8 characters)',
        'tool --token-file /run/secrets/token1.txt --password-stdin --secret id=aws,src=$HOME/.aws/config2',
        '`--secrets HF_TOKEN` takes it from the environment',
        'password-hash: bcrypt, key-exchange: x25519-sha256',
        # Values that are taken from elsewhere
        '- name: DB_PASSWORD\n  valueFrom:\n    secretKeyRef: {name: db-credentials2, key: password}\n',
        'existingSecret: postgres-credentials-v2',
        'password: >-\n  {{ vault_password }}\n',
        '<input type="password" name="password" value="<?= $x1y2z3 ?>">',
        '<property name="cache.key" value="user-7Xq-region-12"/>',
        '<token>IDENTIFIER</token><token>config/settings.py</token>',
        "auth=('user', os.environ['API_PASSWORD'])",
        'curl -u "$USER:$PASSWORD" https://host && git push -u origin:feature/x1',
        'MODEL=gpt2-124m SEED=1337x42 BATCH=64 python train.py',
        'ssh -p 2222 host; tar -pxzf archive-2024b.tgz; mkdir -p build/x86_64-v3',
        'mysql -h db2.internal.net -p shop < dump-2024-07a.sql',
        'Color=a;ColSpan=2;Title=Report2024b;',
        '"integrity": "sha512-q7Rk2vXw9LmZt4q7Rk2vXw9LmZt4=="',
        'max_tokens=1000000\nnum_keys=12345678\nprimary_key=customer_id_2\n',
        'define("VERSION_ID", "2024.11.30-rc1b")',
    ],
)
def test_what_only_resembles_one_is_left(text):
    for kind in ('code', 'text'):
        assert scrub(text, kind) == text


@pytest.mark.parametrize('language', ['yaml', 'ini', 'properties', 'dockerfile', 'xml', 'bash', 'toml'])
def test_settings_need_no_quotes_and_expressions_do(language):
    for name in ('password: ', 'db.password=', 'spring.datasource.password = ', '- API_KEY='):
        assert scrub(name + SECRET, 'code', language) == name + '<SECRET>'
    expression = f'    password = {SECRET}\n'
    assert scrub(expression, 'code', 'python') == expression


@pytest.mark.parametrize(
    'part',
    [
        '<password>', 'password: |\n', 'name="password" ', 'insert into t (password) values (', "''a", 'machine login ',
        'password ', 'identified ', '"token", ', 'mysql ', 'docker login ', '; key=', '--token ', 'PASSWORD=', '//a:b',
        "insert into t (password) values ('a''b",
    ],
)  # fmt: skip
def test_time_grows_as_the_text_does(part):
    """A form that begins again and again, and never ends, takes no more than a few times what its text does."""

    def seconds(text: str) -> float:
        start = time.process_time()
        assert list(secrets('insert ' + text, True)) == []
        return time.process_time() - start

    size = 40_000
    assert seconds(part * (size // len(part))) < 1
    assert seconds('password' + ' ' * size) < 1
    assert seconds("insert into t (password) values ('" + "a''" * (size // 3)) < 1


def test_numbers_beside_telephones():
    phones = FINDERS['phone']
    assert list(phones('You can fax 2000000 pages, or call 1 000 000 people.', False)) == []
    text = 'Suite 4500, Springfield IL 62704-1234 217-555-0142'
    assert [text[start:end] for start, end in phones(text, False)] == ['217-555-0142']
