// The DSDT: what a guest cannot find by probing, in ACPI's machine language.
//
// The C preprocessor and then iasl compile it at build time; boot/dsdt.cc puts the values of
// PlatformInfo in place of the placeholders, which are: 0x10-0x1F for address windows, numbers that
// start with CB elsewhere. A placeholder that is renamed or retyped here fails the build there.
//
// There are no Processor devices: a guest that needs no hot-plug and no power states of a CPU takes
// its CPUs from the MADT alone (ACPI 6.5, 5.2.12).

// _PRT entries of one slot (ACPI 6.5, 6.2.13): any function, pin, no link device, GSI.
#define SLOT(address, a, b, c, d)                                                                  \
    Package () {address, 0, 0, a}, Package () {address, 1, 0, b},                                  \
    Package () {address, 2, 0, c}, Package () {address, 3, 0, d}
// The root bus spreads its slots over the four GSIs as a bridge does (PCI-to-PCI bridge 1.2, 9.1).
#define FOUR_SLOTS(s0, s1, s2, s3)                                                                 \
    SLOT (s0, GSI0, GSI1, GSI2, GSI3), SLOT (s1, GSI1, GSI2, GSI3, GSI0),                          \
    SLOT (s2, GSI2, GSI3, GSI0, GSI1), SLOT (s3, GSI3, GSI0, GSI1, GSI2)

DefinitionBlock ("dsdt.aml", "DSDT", 2, "CROSSB", "CROSSBAR", 1)
{
    // SLP_TYP of soft-off; the others are PM1b's and reserved (ACPI 6.5, 7.4.2).
    Name (\_S5, Package () {0xCB, 0, 0, 0})

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))  // PCI Express
            Name (_CID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_SEG, 0)
            Name (_BBN, 0xCB)
            Name (_CRS, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,
                    0, 0x10, 0x1F, 0, 0x10,,, BUSN)
                IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)  // configuration access, and the reset port
                DWordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0, 0x10, 0x1F, 0, 0x10,,, PIOW)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,
                    ReadWrite, 0, 0x10, 0x1F, 0, 0x10,,, MM32)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Prefetchable,
                    ReadWrite, 0, 0x10, 0x1F, 0, 0x10,,, MM64)
            })

            Name (GSI0, 0xCB000000)
            Name (GSI1, 0xCB000001)
            Name (GSI2, 0xCB000002)
            Name (GSI3, 0xCB000003)
            Name (_PRT, Package ()
            {
                FOUR_SLOTS (0x0000FFFF, 0x0001FFFF, 0x0002FFFF, 0x0003FFFF),
                FOUR_SLOTS (0x0004FFFF, 0x0005FFFF, 0x0006FFFF, 0x0007FFFF),
                FOUR_SLOTS (0x0008FFFF, 0x0009FFFF, 0x000AFFFF, 0x000BFFFF),
                FOUR_SLOTS (0x000CFFFF, 0x000DFFFF, 0x000EFFFF, 0x000FFFFF),
                FOUR_SLOTS (0x0010FFFF, 0x0011FFFF, 0x0012FFFF, 0x0013FFFF),
                FOUR_SLOTS (0x0014FFFF, 0x0015FFFF, 0x0016FFFF, 0x0017FFFF),
                FOUR_SLOTS (0x0018FFFF, 0x0019FFFF, 0x001AFFFF, 0x001BFFFF),
                FOUR_SLOTS (0x001CFFFF, 0x001DFFFF, 0x001EFFFF, 0x001FFFFF)
            })

            // Operating System Capabilities (PCI Firmware 3.3, 4.5.1): the guest may have what it
            // asks for of native hot-plug, PME, AER and the PCIe capability. SHPC, LTR and DPC
            // stay off.
            Method (_OSC, 4, Serialized)
            {
                CreateDWordField (Arg3, 0, STAT)
                If (Arg0 != ToUUID ("33DB4D5B-1FF7-401C-9657-7441C03DD766"))
                {
                    STAT |= 0x04  // unrecognized UUID
                    Return (Arg3)
                }
                If (Arg1 != 1)
                {
                    STAT |= 0x08  // unrecognized revision
                    Return (Arg3)
                }
                CreateDWordField (Arg3, 8, CTRL)
                Local0 = CTRL & 0x1D
                If (Local0 != CTRL)
                {
                    STAT |= 0x10  // some were masked
                }
                CTRL = Local0
                Return (Arg3)
            }
        }

        // Linux uses ECAM only where a motherboard resource reserves it (PCI Firmware 3.3, 4.1.2).
        Device (ECAM)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                QWordMemory (ResourceConsumer, PosDecode, MinFixed, MaxFixed, NonCacheable,
                    ReadWrite, 0, 0x10, 0x1F, 0, 0x10,,, CFGW)
            })
        }

        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))  // 16550A
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0xCB0, 0xCB0, 1, 8, PORT)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive,,, INTR) {0xCB000004}
            })
        }
    }
}
