"""Prints which tests of a ctest JUnit file were skipped, and why each says it was."""
import re
import sys
import xml.etree.ElementTree as ElementTree


def reason(case):
    output = case.findtext("system-out") or ""
    # GoogleTest prints "file:line: Skipped", then the reason; our own scripts print "skipped: reason".
    found = re.search(r": Skipped\n(.+)|^[Ss]kipped: (.+)", output, re.MULTILINE)
    return (found.group(1) or found.group(2)).strip() if found else "it does not say why"


def main():
    cases = ElementTree.parse(sys.argv[1]).getroot().iter("testcase")
    skipped = [(case.get("name"), reason(case)) for case in cases if case.find("skipped") is not None]
    by_reason = {}
    for name, why in skipped:
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        print(f"Skipped {len(names)}: {why}\n  " + ", ".join(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
