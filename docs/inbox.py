"""An agent that works elsewhere and takes its messages itself, by the API."""

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

API = os.environ["API"]  # such as https://ravebot-api.example.org/api/v1
TOKEN = Path(os.environ["TOKEN_FILE"]).read_text().strip()


def call(path, **given):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    asked = urllib.request.Request(f"{API}{path}", json.dumps(given).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)


while True:
    try:
        taken = call("/inbox/take", wait=25)  # waits at most 25 s; without a message, the id is empty
        if taken["id"]:
            call(f"/inbox/{taken['id']}/ack")  # within 60 s: "I have it, don't give it again"
            call(f"/inbox/{taken['id']}/answer", status="thinks")
            call(f"/inbox/{taken['id']}/answer", text=f"You wrote: {taken['message']['text']}", end="done")
    except urllib.error.HTTPError as refused:  # such as 409: it was cancelled meanwhile
        print(refused, refused.read().decode())
        time.sleep(5)
    except OSError as error:  # ravebot is restarted, or can't be reached
        print(error)
        time.sleep(5)
