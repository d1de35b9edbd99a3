package disk

// elfArchitecture returns the architecture of a program by its head (System V ABI, with the
// machines that its supplements have), or "".
func elfArchitecture(b []byte) Architecture {
	if len(b) < 52 || string(b[:4]) != "\x7fELF" {
		return ""
	}
	const little, big = 1, 2
	wide, order := b[4] == 2, b[5]
	if order == big {
		if wide && be.Uint16(b[18:]) == 22 {
			return S390X
		}
		return ""
	}
	if order != little {
		return ""
	}
	switch machine := le.Uint16(b[18:]); {
	case machine == 62 && wide:
		return AMD64
	case machine == 3 && !wide:
		return I386
	case machine == 183 && wide:
		return ARM64
	case machine == 243 && wide:
		return RISCV64
	case machine == 21 && wide:
		return PPC64EL
	case machine == 258 && wide:
		return Loong64
	case machine == 40 && !wide:
		const softFloat, hardFloat = 0x200, 0x400
		switch le.Uint32(b[36:]) & (softFloat | hardFloat) {
		case hardFloat:
			return ARMHF
		case softFloat:
			return ARMEL
		}
	}
	return ""
}

// peArchitecture returns the architecture of an EFI program by its head (PE format), or "".
func peArchitecture(b []byte) Architecture {
	if len(b) < 64 || string(b[:2]) != "MZ" {
		return ""
	}
	at := le.Uint32(b[60:])
	if int64(at)+6 > int64(len(b)) || string(b[at:at+4]) != "PE\x00\x00" {
		return ""
	}
	switch le.Uint16(b[at+4:]) {
	case 0x8664:
		return AMD64
	case 0x014c:
		return I386
	case 0xaa64:
		return ARM64
	case 0x01c0, 0x01c2, 0x01c4:
		return ARMHF
	case 0x5064:
		return RISCV64
	case 0x6264:
		return Loong64
	}
	return ""
}
