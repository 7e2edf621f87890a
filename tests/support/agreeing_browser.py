"""A browser in which a user agrees at once, for BROWSER: `agreeing_browser.py ACCOUNT URL`."""

import sys
import urllib.parse
import urllib.request

if __name__ == "__main__":
    account, url = sys.argv[1:]
    decision = urllib.parse.urlencode({"decision": "agree", "account": account}).encode()
    with urllib.request.urlopen(url, decision, timeout=60) as answer:
        answer.read()
