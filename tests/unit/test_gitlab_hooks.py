"""What a project's webhooks are compared with, and what is registered."""

from __future__ import annotations

import pytest

from ravebot.gitlab import hooks
from ravebot.gitlab.hooks import HookCondition, HookSecrets, HookTarget

TARGET = HookTarget("https://rave.example.org/webhooks/gitlab")
SECRET = HookSecrets(secret_token="hush-hush")
HOOK: dict[str, object] = {
    "id": 5,
    "url": TARGET.address,
    "merge_requests_events": True,
    "note_events": True,
    "push_events": False,
    "enable_ssl_verification": True,
    "alert_status": "executable",
}
OLD = {**HOOK, "url": "https://old.example.org/webhooks/gitlab"}


@pytest.mark.parametrize(
    ("there", "condition"),
    [
        ([HOOK], HookCondition.RIGHT),
        ([{**HOOK, "id": "5", "push_events": True}], HookCondition.RIGHT),
        ([], HookCondition.MISSING),
        ([{**HOOK, "url": "https://ci.example.org/"}, "junk", {"url": None}], HookCondition.MISSING),
        ([OLD], HookCondition.FOREIGN),
        ([OLD, HOOK], HookCondition.RIGHT),
        ([{**HOOK, "note_events": False}], HookCondition.WRONG),
        ([{**HOOK, "token_present": False}], HookCondition.WRONG),
        ([{**HOOK, "token_present": True, "signing_token_present": False}], HookCondition.RIGHT),
        ([{**HOOK, "alert_status": "disabled"}], HookCondition.DISABLED),
        ([{**HOOK, "alert_status": "temporarily_disabled"}], HookCondition.DISABLED),
        ([HOOK, {**HOOK, "id": 6}], HookCondition.DOUBLED),
    ],
)
def test_the_webhooks_of_a_project_are_judged(there: list[object], condition: HookCondition) -> None:
    assert hooks.compare(there, TARGET, SECRET).condition is condition


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        ("https://rave.example.org/webhooks/gitlab", True),
        ("https://RAVE.example.org:443/webhooks/gitlab?team=x", True),
        ("http://rave.example.org/webhooks/gitlab", False),
        ("https://rave.example.org:8443/webhooks/gitlab", False),
        ("https://rave.example.org.evil.example/webhooks/gitlab", False),
        ("https://rave.example.org/webhooks/gitlab/", False),
        ("https://rave.example.org/webhooks/gitlab2", False),
        ("https://rave.example.org@evil.example/webhooks/gitlab", False),
        ("https://[rave/webhooks/gitlab", False),
        ("https://rave.example.org:port/webhooks/gitlab", False),
        ("", False),
    ],
)
def test_only_our_whole_address_is_ours(url: str, ours: bool) -> None:
    assert TARGET.is_met_by(url) is ours


def test_without_a_public_url_only_the_path_counts_and_nothing_is_surplus() -> None:
    target = HookTarget("https://ADDRESS-OF-RAVEBOT/webhooks/gitlab", exact=False)
    found = hooks.compare([OLD, HOOK], target, SECRET)
    assert (found.condition, found.surplus, found.foreign) == (HookCondition.RIGHT, (), ())


def test_of_several_the_one_that_works_is_kept_then_the_one_that_can_not_be_copied_then_the_oldest() -> None:
    disabled, headers = (
        {**HOOK, "id": 1, "alert_status": "disabled"},
        {**HOOK, "id": 9, "custom_headers": [{"key": "x"}]},
    )
    assert hooks.compare([{**HOOK, "id": 7}, HOOK, disabled], TARGET, SECRET).keep_id == 5
    found = hooks.compare([HOOK, headers, disabled], TARGET, SECRET)
    assert found.keep_id == 9
    assert [hooks.hook_id(hook) for hook in found.surplus] == [5, 1]


def test_a_login_or_query_in_a_url_is_not_shown() -> None:
    assert hooks.without_query("https://me:pass@rave.example.org:8443/x?key=hush") == "https://rave.example.org:8443/x"


def test_both_secrets_are_registered_and_other_events_are_turned_off() -> None:
    both = HookSecrets("plain", "whsec_c2VjcmV0")
    made = hooks.to_create(TARGET, both, ssl_verification=False)
    assert (made["token"], made["signing_token"], made["push_events"]) == ("plain", "whsec_c2VjcmV0", False)
    assert made["enable_ssl_verification"] is False
    edited = hooks.to_edit({**HOOK, "issues_events": True, "note_events": False}, SECRET, ssl_verification=True)
    assert edited == {
        "url": TARGET.address, "issues_events": False, "merge_requests_events": True, "note_events": True,
        "enable_ssl_verification": True, "token": "hush-hush",
    }  # fmt: skip


def test_secrets_show_in_no_representation() -> None:
    assert "plain" not in repr(HookSecrets("plain", "whsec_c2VjcmV0"))
    assert "whsec" not in repr(HookSecrets("plain", "whsec_c2VjcmV0"))
