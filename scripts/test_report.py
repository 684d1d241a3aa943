"""What a ctest JUnit file has to say beyond ctest's own summary.

skipped FILE  which tests were skipped, and why each says it was
failed FILE   which tests failed, each with what its first failed check printed, or else its last lines
"""
import re
import sys
import xml.etree.ElementTree as ElementTree

LINES = 25
FAILED_CHECK = re.compile(r": Failure$|^[\w.]+(Error|Exception|Expired): |^README.md: '")  # of GoogleTest, Python, docs.py


def output(case):
    return case.findtext("system-out") or ""


def reason(case):
    # GoogleTest prints "file:line: Skipped", then the reason; our own scripts print "skipped: reason".
    found = re.search(r": Skipped\n(.+)|^[Ss]kipped: (.+)", output(case), re.MULTILINE)
    return (found.group(1) or found.group(2)).strip() if found else "it does not say why"


def print_skipped(cases):
    by_reason = {}
    for case in cases:
        if case.find("skipped") is not None:
            by_reason.setdefault(reason(case), []).append(case.get("name"))
    for why, names in by_reason.items():
        print(f"Skipped {len(names)}: {why}\n  " + ", ".join(names))


def print_failed(cases):
    for case in cases:
        if case.find("failure") is not None:
            said = [line for line in output(case).splitlines() if line.strip()]
            first = next((i for i, line in enumerate(said) if FAILED_CHECK.search(line)), len(said) - LINES)
            print(f"  {case.get('name')}, {float(case.get('time', 0)):.0f} s")
            for line in said[max(first, 0):][:LINES]:
                print(f"    {line[:200]}")


def main():
    what, path = sys.argv[1:]
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    {"skipped": print_skipped, "failed": print_failed}[what](cases)


if __name__ == "__main__":
    main()
