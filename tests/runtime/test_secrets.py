"""No secret leaves: keys, URIs, texts; and what only looks like one stays as it is."""

import json

import pytest

from raykb.config import dump, flatten
from raykb.runtime.secrets import HIDDEN, document, given_again, hidden, is_secret, redacted

SECRET_KEYS = [
    "password",
    "passwd",
    "db_password",
    "data.password",
    "api_key",
    "apiKey",
    "API-KEY",
    "access_key",
    "aws_access_key_id",
    "AWSAccessKeyId",
    "secret_key",
    "aws.Secret",
    "private_key",
    "account_key",
    "connection_string",
    "AZURE_STORAGE_CONNECTION_STRING",
    "token",
    "api_token",
    "hf.token",
    "credentials",
    "credentials.user",
    "Authorization",
]
PLAIN_KEYS = [
    "tokens",
    "patch_tokens",
    "class_token",
    "mask_token",
    "tokenizer",
    "token_dim",
    "seed_number",
    "key",
    "keys",
    "keypoints",
    "monkey",
    "sort_key",
    "secretary",
    "access",
    "path",
    "author",
]


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_a_secret_is_known_by_its_key(key):
    assert is_secret(key)
    assert hidden({"a": {key: "abc"}}) == {"a": {key: HIDDEN}}
    assert hidden({key: ["abc", "def"]}) == {key: [HIDDEN, HIDDEN]}
    assert hidden("abc", key) == HIDDEN


@pytest.mark.parametrize("key", PLAIN_KEYS)
def test_what_only_sounds_like_one_is_shown(key):
    plain = {"a": [{key: "abc"}, {key: 3}]}
    assert hidden(plain) == plain
    text = dump({key: "abc"}) + f"f({key}=abc, '{key}': 'abc') http://h/x?{key[:0]}page=3"
    assert document(text) == text


def test_a_token_that_is_no_text_belongs_to_a_model():
    plain = {"token": 64, "model": {"class_token": True, "token": False}, "password": None}
    assert hidden(plain) == plain
    assert hidden(flatten(plain)) == flatten(plain)
    assert document(dump(plain)) == dump(plain)
    assert hidden({"password": 12345}) == {"password": HIDDEN}


def test_secrets_are_found_at_any_depth():
    config = {
        "data": [{"root": "s3://k:s@b/x", "options": {"api_key": "abc"}}, 3],
        "login": {"credentials": {"user": "abc", "more": ["abc", {"pin": 123}]}},
        "text": '[{"password": "abc", "n": 1}]',
    }
    assert hidden(config) == {
        "data": [{"root": "s3://***@b/x", "options": {"api_key": HIDDEN}}, 3],
        "login": {"credentials": {"user": HIDDEN, "more": [HIDDEN, {"pin": HIDDEN}]}},
        "text": '[{"password": "***", "n": 1}]',
    }
    for text in (json.dumps(hidden(flatten(config))), document(dump(config))):
        assert "abc" not in text
        assert "123" not in text


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://u:p@h:5000/x", "http://***@h:5000/x"),
        ("http://u:p/w@h", "http://***@h"),
        ("http://u:p@ss@h/x", "http://***@h/x"),
        ("http://u:p@ss/w?o#d@h/x", "http://***@h/x"),
        ("postgresql+psycopg2://u:p@h/db", "postgresql+psycopg2://***@h/db"),
        ("s3://AKIA@bucket/x", "s3://***@bucket/x"),
        ("https://h/x?sv=1&sig=a%2Bb=&se=2", "https://h/x?sv=1&sig=***&se=2"),
        ("s3://k:s@b/x?secret_key=p@q&region=eu", "s3://***@b/x?secret_key=***&region=eu"),
        ("https://h/x?password=abc", "https://h/x?password=***"),
        ("https://h/x?key=abc&n=1", "https://h/x?key=***&n=1"),
        ("https://h/x?X-Amz-Signature=a&n=1", "https://h/x?X-Amz-Signature=***&n=1"),
        ("https://h/x?X-Amz-Credential=a/b", "https://h/x?X-Amz-Credential=***"),
        ("https://h/x?X-Amz-Security-Token=a", "https://h/x?X-Amz-Security-Token=***"),
        ("https://h/x?AWSAccessKeyId=a&token=3", "https://h/x?AWSAccessKeyId=***&token=***"),
        ("uri=http://h/x?sig=a", "uri=http://h/x?sig=***"),
        ("abfs://user:p@container/x", "abfs://***@container/x"),
        (
            "wasbs://me:p@ss@account.blob.core.windows.net/x",
            "wasbs://***@account.blob.core.windows.net/x",
        ),
    ],
)
def test_a_uri_is_shown_without_user_password_and_secrets_of_its_query(uri, shown):
    for around in ("{}", "no route to {} (refused)", '{{"a": "{}"}}', "a,{}\nb@c"):
        assert redacted(around.format(uri)) == around.format(shown)
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://h:5000/x",
        "http://h/x@v1",
        "s3://bucket/a@b?region=eu-west-1&endpoint_override=localhost:9000",
        "sqlite:////data/u:p@h/mlflow.db?timeout=3",
        "abfs://container@account.dfs.core.windows.net/path",
        "abfss://container@account.dfs.core.windows.net/a@b",
        "WASB://container@account.blob.core.windows.net, wasbs://c@a/x",
        "mail me@example.com, f(seed=3, tokens=4, token=5)",
        "api_key: unknown (did you mean 'keys'?)",
        "data.api_key: unknown; known: root, download\ndata.token: missing; str",
        "data.password: is called data.phrase now",
        "credentials: file not found, log in first",
        "data.token: 5, must be text",
        "data.password: null, must be text",
        'model.class_token: "x", must be true or false',
        "model.mask_token: 'x': unknown",
        "tokenizer: abc, must be a mapping",
        "search.width: 40 -> 80",
        "[" * 100_000,
    ],
)
def test_a_text_without_secrets_is_shown_as_it_is(text):
    assert redacted(text) == text
    assert hidden(text, "note") == text


@pytest.mark.parametrize(
    "text",
    [
        "connect(password='abc', user='me')",
        "--set data.api_key=abc: unknown",
        "headers {'Authorization': 'Bearer abc'}",
        '{"my_secret": "a\\"abc"}',
        "-----BEGIN RSA PRIVATE KEY-----\nabc\nabc\n-----END RSA PRIVATE KEY-----",
        "lost http://h/x,http://u:abc@h/x",
        "run.yaml: [data.token: 'abc', must be text",
        'refused: "data.token: "abc", must be text"',
        "error: 'api_key: abc, must be int', \"x\"",
        '{"note": "password: abc", "n": 1}',
    ],
)
def test_secrets_in_an_error_s_text_are_hidden(text):
    assert "abc" not in redacted(text)
    assert HIDDEN in redacted(text)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ('"abc"', '"***"'),
        ("'abc'", '"***"'),
        ('"a\\"abc, must be"', '"***"'),
        ('"a\'bc abc"', '"***"'),
        ('"abc abc…', '"***"'),  # cut short
        ("abc", "***"),
        ("a:b,abc", "***"),
        ('["abc", "abc"]', '"***"'),
        ('{"user": "abc", "pin": 1}', '"***"'),
        ('{"user": "abc…', '"***"'),
    ],
)
@pytest.mark.parametrize("key", ["data.token", "optimizer.password", "api-key"])
def test_a_secret_that_is_refused_is_not_shown(key, value, shown):
    for text in ("{}: {}, must be int", "{}: {}: unknown", "{}: {}, unknown; known: x"):
        for around in ("{}", "run.yaml: 2 problems\n  - {}\n  - lr: -1, must be positive"):
            assert redacted(around.format(text.format(key, value))) == around.format(
                text.format(key, shown)
            )
    assert redacted(f"{key}: {value}\nn: 1") == f"{key}: {shown}\nn: 1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token: abc\nn: 1\n", 'token: "***"\nn: 1\n'),
        ("- api_key: abc, def\n", '- api_key: "***"\n'),
        ("passwords:\n- abc\n- abc\nn: 1\n", 'passwords: "***"\nn: 1\n'),
        ("private_key: |\n  abc\n\n  abc\nn: 1", 'private_key: "***"\n\nn: 1'),
        ("a: {user: me, password: abc, n: 1}", 'a: {user: me, password: "***", n: 1}'),
        ("token:\n  dim: 3\n", "token:\n  dim: 3\n"),
    ],
)
def test_a_document_keeps_its_lines_but_for_secrets(text, shown):
    assert document(text) == shown


# ---------------------------------------------------------------------- given again


@pytest.fixture
def environment(monkeypatch):
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    return lambda name, value: monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)


def tracked(uri):
    return {"storage": "runs", "tracking": {"uri": uri, "experiment": "x"}}


def test_a_tracking_uri_is_taken_again_from_the_environment(environment):
    kept = hidden(tracked("http://me:abc@host:5000"))
    with pytest.raises(ValueError, match=r"\*\*\*@host:5000'.* set MLFLOW_TRACKING_URI to the who"):
        given_again(kept)
    environment("URI", "http://me:abc@elsewhere:5000")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        given_again(kept)
    environment("URI", "http://me:abc@host:5000")
    assert given_again(kept) == tracked("http://me:abc@host:5000")


def test_a_server_needs_no_whole_uri_where_mlflow_has_user_and_password_of_its_own(environment):
    environment("USERNAME", "me")
    environment("PASSWORD", "abc")
    assert given_again(hidden(tracked("http://me:abc@host"))) == tracked("http://host")
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI"):  # a database has no such
        given_again(hidden(tracked("postgresql://me:abc@host/db")))


def test_what_nobody_knows_is_asked_for_by_its_key():
    with pytest.raises(ValueError, match=r"data\.api_key: '\*\*\*', .* by --set data\.api_key=…"):
        given_again({"data": {"api_key": HIDDEN}})
    with pytest.raises(ValueError, match="and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        given_again({"storage": "s3://***@b"})
    config = {"storage": "s3://***@b", "data": {"api_key": "abc"}}
    assert given_again(config, leaving_out="storage") == config
