"""Results of set-up and tests: reports from guests are counted whatever they are, and secrets in output are masked."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ravebot.gitlab.results import NO_BREAK, ROWS, cases_table, commands_table, log
from ravebot.logs import Redaction
from ravebot.sandboxes.chain.results import count, unpack
from ravebot.sandboxes.junit import read_report
from ravebot.sandboxes.masking import MASK, masked
from ravebot.sandboxes.model import Stage
from ravebot.sandboxes.results import MOST_CASES, CaseCounts, CommandResult, FailedCase
from tests.support.gitlab.notes import mentions, take_quick_actions

REPORT = b"""<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="s" tests="99">
  <testcase classname="app.Login" name="works" time="1.5"/>
  <testcase classname="app.Login" name="fails" time="0.5"><failure message="expected 1, got 2">trace</failure>
  </testcase>
  <testcase name="breaks"><error>
    Traceback: no libfoo
  </error></testcase>
  <testcase name="later"><skipped message="not yet"/></testcase>
</testsuite></testsuites>"""
BOMB = b'<!DOCTYPE l [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]><testsuite><testcase name="&b;"/></testsuite>'
EXTERNAL = b'<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><testsuite><testcase name="&x;"/></testsuite>'
HOSTILE = "/close\n@all <script>alert(1)</script> </details> ``` | \u202e [x](http://evil.example) " + "x" * 5_000


def test_a_report_is_counted_by_its_cases_not_by_what_it_claims() -> None:
    counts = read_report(REPORT)
    assert counts.in_short == "4 tests, 2 failed, 1 skipped"
    assert counts.seconds == 2.0
    assert counts.failures == (
        FailedCase("app.Login.fails", "expected 1, got 2"),
        FailedCase("breaks", "Traceback: no libfoo"),
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (BOMB, "declares a document type"),
        (EXTERNAL, "declares a document type"),
        (b"", "not XML"),
        (b"\0" * 1000, "not XML"),
        (b"<testsuite><testcase/>", "not XML that can be read (line 1, column 23)"),
        (b'<testsuite><testcase name="\xe9"/></testsuite>', "not XML"),
        (b'<?xml version="1.0" encoding="klingon"?><testsuite/>', "encoding is not known"),
        (b'<?xml version="1.0" encoding="utf-32"?><testsuite/>', "encoding is not known"),
        (b"<!DOCTYPE testsuite><testsuite/>", "declares a document type"),
        (b"<testsuite>" + b"<a/>" * 200_001 + b"</testsuite>", "more than 200000 elements"),
        (b"<html/>", "no JUnit report"),
        (b"<testsuite>" * 90_000, "nested more than"),
    ],
)
def test_a_report_that_is_wrong_or_hostile_is_one_line(content: bytes, why: str) -> None:
    counts = read_report(content)
    assert counts.total == 0
    assert [why in problem for problem in counts.problems] == [True]


def test_of_a_test_that_failed_twice_or_was_skipped_too_the_first_failure_counts() -> None:
    counts = read_report(
        b'<j:testsuite xmlns:j="urn:x"><j:testcase name="a"><j:failure message="first"/><j:error message="second"/>'
        b'<j:skipped/></j:testcase><j:testcase name="b"><j:skipped/><j:failure message="after all"/></j:testcase>'
        b"</j:testsuite>"
    )
    assert counts.in_short == "2 tests, 2 failed"
    assert counts.failures == (FailedCase("a", "first"), FailedCase("b", "after all"))


def test_a_test_in_a_test_is_part_of_it_and_one_without_a_name_is_said_so() -> None:
    counts = read_report(
        b'<testsuite><testcase name="a"><testcase name="b"><failure/></testcase></testcase><testcase/></testsuite>'
    )
    nameless = read_report(b"<testsuite><testcase><failure/></testcase></testsuite>")
    assert (counts.total, counts.failures) == (2, (FailedCase("a"),))
    assert nameless.failures == (FailedCase("a test without a name"),)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("1.5", 1.5), ("1,234.5", 1234.5), ("-3", 0), ("nan", 0), ("1e300", 0), ("inf", 0), ("soon", 0), ("", 0)],
)
def test_a_time_that_makes_no_sense_counts_as_none(time: str, seconds: float) -> None:
    assert read_report(f'<testsuite><testcase time="{time}"/></testsuite>'.encode()).seconds == seconds


def test_long_messages_are_cut_wherever_they_stand() -> None:
    for failure in (f'<failure message="{"y" * 5_000}"/>', f"<failure>{'y' * 5_000}</failure>"):
        counts = read_report(f"<testsuite><testcase>{failure}</testcase></testsuite>".encode())
        assert counts.failures[0].message == "y" * 300


@pytest.mark.parametrize("place", ["message", "text", "name", "class"])
@pytest.mark.parametrize("before", [185, 199, 285, 299, 8_180])
def test_a_secret_that_a_cut_would_go_through_is_masked_before(place: str, before: int) -> None:
    said = f"{'x' * (before - 20)} https://deploy:S3cretPassw0rd@db.example.org/x"
    said = f"{said}{' y' * 5_000}" if before > 1_000 else said
    case = {
        "message": f'<testcase name="a"><failure message="{said}"/></testcase>',
        "text": f'<testcase name="a"><failure>{said}</failure></testcase>',
        "name": f'<testcase name="{said}"><failure/></testcase>',
        "class": f'<testcase classname="{said}" name="a"><failure/></testcase>',
    }
    failed = read_report(f"<testsuite>{case[place]}</testsuite>".encode()).failures[0]
    assert "S3cret" not in failed.name + failed.message
    assert "deploy" not in failed.name + failed.message


def test_a_long_key_before_it_brings_no_half_secret_into_what_is_kept() -> None:
    key = f"-----BEGIN PRIVATE KEY----- {'A' * 8_118} -----END PRIVATE KEY----- "
    message = f"{key}glpat-abcdefghij0123456789"
    assert len(key) < 8_192 < len(message)
    report = f'<testsuite><testcase name="a"><failure message="{message}"/></testcase></testsuite>'
    assert read_report(report.encode()).failures[0].message.strip() == MASK


def test_a_files_name_is_masked_before_it_is_cut() -> None:
    name = f"{'x' * 190}/glpat-abcdefghij0123456789.xml".encode()
    for raw in (b"large %b\n" % name, b"file 1000 %b\n" % name, b"file 4 %b\n<a/>" % name):
        assert "glpat" not in str(count(raw))
        assert len(count(raw).problems[0]) < 320


def test_a_megabyte_in_an_attribute_is_cut_and_95000_cases_are_counted_in_time() -> None:
    long = read_report(b'<testsuite><testcase name="' + b"x" * 10**6 + b'"><failure/></testcase></testsuite>')
    assert len(long.failures[0].name) == 200
    begun = time.process_time()
    many = read_report(b"<testsuite>" + b"<testcase><error/></testcase>" * 35_000 + b"</testsuite>")
    assert (many.failed, len(many.failures)) == (35_000, MOST_CASES)
    assert time.process_time() - begun < 5


@given(st.binary(max_size=200))
def test_no_bytes_from_a_guest_raise(content: bytes) -> None:
    read_report(content)
    count(content)
    count(b"file %d a.xml\n%s" % (len(content), content))


def test_the_files_of_a_guests_answer_are_counted_together_and_one_named_twice_once() -> None:
    part = b"file %d %%b\n%s" % (len(REPORT), REPORT)
    counts = count(part % b"a.xml" + part % b"./a.xml" + part % b"b.xml" + b"outside c.xml\nlarge d.xml\n")
    assert (counts.total, counts.failed) == (8, 4)
    assert [problem.partition(" is ")[0] for problem in counts.problems] == ["`c.xml`", "`d.xml`"]


def test_an_answer_that_lies_about_sizes_is_not_believed() -> None:
    assert "came incomplete" in unpack(b"file 500 a.xml\n<a/>").problems[0]
    assert "came incomplete" in unpack(b"file 9999999 a.xml\n<a/>").problems[0]
    assert "came incomplete" in unpack(b"file 1048577 a.xml\n" + b" " * 1048577).problems[0]
    assert "makes no sense" in unpack(b"file 4 a.xml\n<a/>rest").problems[0]
    assert "no file is where" in count(b"").problems[0]


def test_no_more_files_that_can_t_be_used_are_told_than_can_be_read() -> None:
    counts = count(b"".join(b"large %d.xml\n" % number for number in range(12)))
    assert len(counts.problems) == 6
    assert counts.problems[-1] == "and 7 more files"


def test_a_name_can_not_end_the_code_that_it_is_shown_as() -> None:
    assert count(b"large a`b`@all.xml\n").problems[0].startswith("`a'b'@all.xml` is too large")


KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\nAAAAAAAAAAABAAAAMwAAAAtz\n"


@pytest.mark.parametrize(
    "secret",
    [
        "glpat-abcdefghij0123456789",
        "rave_abcdefghijklmnopqrstuv",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "xoxb-123456789012-abcdefghijkl",
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "github_pat_11ABCDEFG0abcdefghijkl",
        "sk-ant-api03-abcdefghijklmnop",
        "syt_YWxpY2U_abcdefghijklmnop_0aBcDe",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "npm_abcdefghijklmnopqrstuvwxyz0123456789",
        "pypi-AgEIcHlwaS5vcmcCJGFiY2RlZmdo",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        f"{KEY}-----END OPENSSH PRIVATE KEY-----",
        KEY,
    ],
)
def test_a_tokens_shape_is_masked_and_what_stands_beside_it_is_not(secret: str) -> None:
    said = masked(f"before\ntoken={secret}\nafter")
    assert secret.strip() not in said
    assert MASK in said
    assert said.startswith("before\ntoken=")
    assert said.endswith("\nafter") or secret == KEY  # without an end, all that follows may be the key


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31mglpat-abcdefghijklmnopqrst\x1b[0m", "glpat-abcdef\x1b[1mghijklmnopqrst",
        "\x1b[33mghp_0123456789abcdefghij",
        '{"log": "one\\nglpat-abcdefghijklmnopqrst"}', "AIza0123456789abcdefghijklmnopqrstuvwxy",
        "Authorization: Bearer \x1b[33mabcdefgh1234",
    ],
)  # fmt: skip
def test_colours_and_escaped_lines_hide_no_token(text: str) -> None:
    said = masked(text)
    assert MASK in said
    assert not any(part in said for part in ("abcdefgh", "0123456789"))


def test_the_rest_of_a_key_whose_beginning_was_cut_away_is_masked() -> None:
    rest = KEY.partition("\n")[2] + "-----END OPENSSH PRIVATE KEY-----"
    assert masked(f"{rest}\nafter") == f"{MASK}\nafter"
    assert masked(f"make: all done\n{rest}") == f"make: all done\n{MASK}"


def test_credentials_in_addresses_headers_and_parameters_are_masked() -> None:
    assert masked("git clone https://bob:hunter22@h/x.git") == f"git clone https://{MASK}@h/x.git"
    for login in ("u:p@ssw0rd-long", "u:a@b@c", "u:it'ssecret", 'u:quo"te', "u:<x>", f"u:{'long' * 500}"):
        assert masked(f"see https://{login}@host/x@y z@w") == f"see https://{MASK}@host/x@y z@w"
    assert masked("Authorization: Bearer abcdefgh1234") == f"Authorization: Bearer {MASK}"
    assert masked("PRIVATE-TOKEN: abcdefgh1234") == f"PRIVATE-TOKEN: {MASK}"
    for key in ("private_token", "job_token", "access_token", "token", "secret", "password", "signature"):
        assert masked(f"GET /a?{key}=abc&x=1") == f"GET /a?{key}={MASK}&x=1"


def test_ordinary_output_stays_as_it_is() -> None:
    output = "Basic functionality works\nsee https://example.org/a?b=c\nmail bob@example.org\nsha 0123456789abcdef\n"
    assert masked(output) == output


@pytest.mark.parametrize(
    "piece", ["eyJ", "://", "-----BEGIN ", "a" * 16 + "\n", "@", "://@", "Bearer ", "glpat-", "=+/", "?token="]
)
def test_masking_takes_no_longer_for_hostile_output(piece: str) -> None:
    begun = time.process_time()
    masked((piece * 64_000)[:64_000] + "-----END PRIVATE KEY-----")
    assert time.process_time() - begun < 1


def test_of_many_commands_those_that_failed_are_among_the_rows() -> None:
    commands = [CommandResult(Stage.SETUP, at, f"step {at}", ok=at != 38, seconds=1.0) for at in range(40)]
    table = commands_table(commands)
    assert f"| set-up `step 38` | ❌ failed | 1.0{NO_BREAK}s |" in table
    assert f"| set-up `step 0` | ✅ done | 1.0{NO_BREAK}s |" in table
    assert table.splitlines()[-1] == "| and 20 more | | |"
    assert len(table.splitlines()) == 2 + ROWS + 1


def test_a_failed_test_without_a_message_has_a_dash() -> None:
    assert cases_table(CaseCounts(1, 1, failures=(FailedCase("a"),)))[1].splitlines()[-1] == "| `a` | — |"


def test_a_long_name_shows_its_end_and_a_long_word_can_go_on_in_the_next_line() -> None:
    """Of a table that is wider than the note, GitLab shows the left part: the reason would be out of sight."""
    name, why = f"com.example.{'deep.' * 20}Login.works", f"at {'x' * 65} | @all"
    row = cases_table(CaseCounts(1, 1, failures=(FailedCase(name, why),)))[1].splitlines()[-1]
    shown = row.split(" | ")[0].removeprefix("| `").removesuffix("`")
    assert len(shown) == 60
    assert shown.startswith("…")
    assert name.endswith(shown[1:])
    assert row.split(" | ")[1].split("\u200b") == [f"at {'x' * 30}", "x" * 30, "xxxxx &#124; @\u2060all |"]


def test_hostile_names_and_messages_stay_in_their_cells() -> None:
    cases = CaseCounts(3, 2, 0, 1.0, (FailedCase(HOSTILE, HOSTILE),) * 2)
    command = CommandResult(Stage.TEST, 0, HOSTILE, ok=False, tail=HOSTILE)
    note = "\n\n".join([*cases_table(cases), commands_table([command])])
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(note)
    assert html.count("<tr>") == 3 + 2
    assert "<script" not in html
    assert "<a " not in html
    assert not mentions(note)
    assert take_quick_actions(note)[1] == []
    assert len(note) < 3_000


def test_the_log_is_at_most_a_screenful() -> None:
    shown = log("".join(f"line {number}\n" for number in range(1_000)))
    assert len(shown.splitlines()) <= 40 + 3
    assert "line 999" in shown
    assert len(log("x" * 100_000)) < 4_100


def test_counts_in_short() -> None:
    assert CaseCounts().in_short == ""
    assert CaseCounts(1).in_short == "1 test, none failed"
    assert replace(CaseCounts(12, 1), problems=("x",)).in_short == "12 tests, 1 failed"


def test_secrets_that_ravebot_was_given_are_hidden_and_ordinary_words_beside_them_stay() -> None:
    known = Redaction(["hunter22", "p@ss/word"])
    said = known.without_known("Basic functionality, hunter22 and p%40ss%2Fword")
    assert said == "Basic functionality, [hidden] and [hidden]"
