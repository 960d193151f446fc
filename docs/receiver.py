"""A webhook receiver for an agent that works elsewhere: checks who sends, and answers by the API."""

import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from standardwebhooks.webhooks import Webhook, WebhookVerificationError  # pip install standardwebhooks

KEY = Webhook(Path(os.environ["SIGNING_KEY_FILE"]).read_text().strip())
TOKEN = Path(os.environ["TOKEN_FILE"]).read_text().strip()
seen = set()  # a real agent keeps these on its disk, and the messages that it has not answered yet


def work(message):
    said = json.dumps({"text": f"You wrote: {message['text']}", "end": "done"}).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", "Idempotency-Key": message["id"]}
    try:
        urllib.request.urlopen(urllib.request.Request(message["answer_url"], said, headers), timeout=30).close()
    except urllib.request.HTTPError as refused:  # its text says why, and what to do
        print(refused, refused.read().decode())


class Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            event = KEY.verify(self.rfile.read(min(int(self.headers["Content-Length"]), 1_000_000)), dict(self.headers))
        except WebhookVerificationError:
            self.send_error(401)
            return
        self.send_response(204)
        self.end_headers()
        if event["type"] == "turn.given" and event["data"]["id"] not in seen:  # the same id may come again
            seen.add(event["data"]["id"])
            work(event["data"])  # ravebot has its answer, and does not wait: each request is a thread here


ThreadingHTTPServer((os.environ.get("LISTEN", "127.0.0.1"), int(os.environ["PORT"])), Hook).serve_forever()
