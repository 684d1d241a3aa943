"""Shows the output of `crossbar run --report /dev/stdout` on stdin: the guest's lines, each with a bar before it, and in
place of each report what it says in a few lines; for scripts/demo. Fails where no guest, or not each, reported success."""
import json
import sys

MIB = 1 << 20
GUEST_SUCCESS = 1


def size(number):
    return f"{number // MIB} MiB" if number >= MIB else f"{number // 1024} KiB"


def show_start(report):
    entered = {phase["name"]: phase["at_us"] for phase in report["phases"]}["first entry"]
    print(f"  First instruction of the guest {entered / 1000:.1f} ms after Crossbar was started, with"
          f" {size(report['memory']['ram_bytes'])} of RAM; Crossbar itself took"
          f" {report['memory']['overhead_bytes'] / MIB:.1f} MiB.")


def show_matrix(cells):
    print("  The P2P matrix, which device can DMA into which BAR:")
    for cell in cells:
        print(f"    {cell['initiator']:8} -> {cell['target']:8} BAR {cell['bar']}  {size(cell['bytes']):>8} at {cell['gpa']}"
              f"  {cell['state']} ({cell['detail']})")


def show_zaps(zaps):
    """Those that took something away."""
    for zap in zaps:
        if not zap["pieces"]:
            continue
        print(f"  The zap of {zap['device']} ({zap['cause']}), microseconds after it was noticed:\n"
              f"    noticed 0 | DMA out {zap['dma_out_us']:.0f} | memslots out {zap['slots_out_us']:.0f} |"
              f" hardware done {zap['hardware_done_us']:.0f}")


def show(report):
    show_start(report)
    passthrough = report.get("passthrough", {})
    if passthrough:
        show_matrix(passthrough["p2p"])
        show_zaps(passthrough["zaps"]["recent"])
    print(flush=True)


def main():
    ended = []
    text = ""  # of a report that has begun
    for line in sys.stdin:
        text += line if text or line == "{\n" else ""
        if text and line == "}\n":
            report = json.loads(text)
            text = ""
            show(report)
            ended.append(report["end"])
        elif not text:
            print(f"  | {line}" if line.strip() else line, end="", flush=True)
    for end in ended:
        if end["status"] != GUEST_SUCCESS:
            print(f"A guest did not report success: {end['detail']} (exit status {end['status']})")
    return 0 if ended and all(end["status"] == GUEST_SUCCESS for end in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
