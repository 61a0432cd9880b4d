"""What the console asks the server for; the page itself is tested in tests/browser."""

import httpx

from tests.server.process import ServerProcess

HARMFUL = "A calm beginning of thirty letters, then comes the harm, and it goes on beyond the next check of it"


def test_the_page_and_its_files(server):
    page = server.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    script = server.get("/console/js/app.js")
    assert script.headers["content-type"].startswith("text/javascript")
    again = httpx.get(f"{server.url}/console/js/app.js", headers={"If-None-Match": script.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    for wrong in ("/console/js/none.js", "/console/../app.py", "/console/%2e%2e/app.py", "/console/index.html"):
        assert server.get(wrong).status_code == 404


def test_the_page_needs_no_key_but_what_it_asks_for_does():
    with ServerProcess.scripted({}, env={"ANYDEPTH_API_KEY": "right"}) as keyed:
        assert keyed.get("/").status_code == keyed.get("/console/css/base.css").status_code == 200
        assert keyed.get("/console/config").status_code == 401
        key = {"Authorization": "Bearer right"}
        assert httpx.get(f"{keyed.url}/console/config", headers=key).json()["model"] == "scripted"


def test_it_can_be_switched_off():
    with ServerProcess.scripted({"console": {"enabled": False}}) as plain:
        assert plain.get("/").status_code == plain.get("/console/config").status_code == 404


def test_the_config_is_what_the_operator_allows(server):
    config = server.get("/console/config").json()
    assert config["allowed"]["interval"] == {"min": 2, "max": 50} and config["allowed"]["checks"] is True
    assert config["allowed"]["release"] == ["hold", "eager", "monitor"] and config["compare"] == "offered"
    assert config["allowed"]["policies"]["patient"] == {"name": "k_of_n", "k": 2, "n": 3}
    assert config["limits"] == {"max_tokens": 1000, "default_max_tokens": 512}
    assert len({example["id"] for example in config["gallery"]}) == len(config["gallery"])
    assert all(example["prompt"] for example in config["gallery"])
    with ServerProcess.scripted({"guard": {"adaptive": {"widest": 30}}}) as closed:
        config = closed.get("/console/config").json()
    assert config["allowed"]["release"] == ["hold"] and config["compare"] == "not_allowed"
    assert config["guard"]["interval"] is None and "widest=30" in config["guard"]["schedule"]


def test_a_stream_tells_how_far_each_release_goes(client):
    def stream(**anydepth):
        messages = [{"role": "user", "content": f"say: {HARMFUL}"}]
        chunks = client.chat.completions.create(
            model="scripted", messages=messages, stream=True, extra_body={"anydepth": anydepth}
        )
        return [chunk.choices[0] for chunk in chunks]

    text, checked = "", 0
    for choice in stream(checks=True):
        told = getattr(choice, "anydepth", None) or {}
        checked = told.get("check", {"depth": checked})["depth"]
        if choice.delta.content and "depth" in told and choice.finish_reason is None:  # the last one has the refusal
            text += choice.delta.content
            assert told["depth"] == len(text) == checked
    assert text and HARMFUL.startswith(text) and "harm" not in text
    assert all(not hasattr(choice, "anydepth") for choice in stream()[:-1])


def test_a_scan_tells_the_text_of_each_window(client):
    answer = "tea with caf\u00e9 \u4f60\u597d and more of it, to the end"
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    body = {"anydepth": {"checks": True, "interval": 2}}
    report = client.moderations.create(input=messages, extra_body=body).results[0].anydepth
    windows = report["windows"]
    assert "".join(window["text"] for window in windows) == answer
    assert [window["stop"] for window in windows] == [check["depth"] for check in report["timeline"]][1:]
    assert "windows" not in client.moderations.create(input=messages).results[0].anydepth
