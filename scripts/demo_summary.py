"""Says in a few lines what a report of `crossbar run --report` shows; for scripts/demo."""
import json
import sys

MIB = 1 << 20


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        report = json.load(file)
    entered = {phase["name"]: phase["at_us"] for phase in report["phases"]}["first entry"]
    memory = report["memory"]
    exits = sum(vcpu["pio"] + vcpu["mmio"] for vcpu in report["exits"])
    print(f"""
What this shows:
- KVM ran the guest's first instruction {entered / 1000:.1f} ms after Crossbar was started, kernel image loaded
  ({report["kernel_format"]}), {memory["ram_bytes"] // MIB} MiB of RAM, ACPI tables and device tree in place.
- The guest wrote the lines above to its serial port. Crossbar answered {exits} of its device accesses.
- It ended itself through the debug-exit port and reported success: exit status {report["end"]["status"]}.
- Beyond the guest's RAM, Crossbar took {memory["overhead_bytes"] / MIB:.1f} MiB of memory.

Next: build/release/crossbar run --help, other guests in build/guests/, and ./scripts/test.""")


if __name__ == "__main__":
    main()
