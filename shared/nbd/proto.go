package nbd

// Numbers of the protocol (section "Values").
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicReply      = 0x0003e889045565a9 // to an option
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, which are also those of clients.
const (
	flagFixedNewstyle = 1 << iota
	flagNoZeroes
	knownFlags = 1<<iota - 1
)

// Transmission flags.
const (
	hasFlags     = 1 << 0
	readOnly     = 1 << 1
	sendFlush    = 1 << 2
	sendFUA      = 1 << 3
	sendTrim     = 1 << 5
	sendZeroes   = 1 << 6
	sendDF       = 1 << 7
	canMultiConn = 1 << 8
	sendCache    = 1 << 10
	sendFastZero = 1 << 11
)

type option uint32

const (
	optExportName      option = 1
	optAbort           option = 2
	optList            option = 3
	optStartTLS        option = 5
	optInfo            option = 6
	optGo              option = 7
	optStructuredReply option = 8
	optListMeta        option = 9
	optSetMeta         option = 10
)

// A replyType is the type of a reply to an option.
type replyType uint32

const (
	repAck    replyType = 1
	repServer replyType = 2
	repInfo   replyType = 3
	repMeta   replyType = 4

	repError       replyType = 1 << 31
	repUnsupported           = repError + 1
	repPolicy                = repError + 2
	repInvalid               = repError + 3
	repTLSRequired           = repError + 5
	repUnknown               = repError + 6
	repTooBig                = repError + 9
)

// Types of information about an export.
const (
	infoExport    = 0
	infoBlockSize = 3
)

// The one metadata context (section "base:allocation metadata context").
const (
	metaNamespace  = "base:"
	metaAllocation = "base:allocation"
	metaID         = 1

	stateHole = 1 << 0
	stateZero = 1 << 1
)

type command uint16

const (
	cmdRead command = iota
	cmdWrite
	cmdDisconnect
	cmdFlush
	cmdTrim
	cmdCache
	cmdWriteZeroes
	cmdBlockStatus
)

// Command flags.
const (
	flagFUA = 1 << iota
	flagNoHole
	flagDF
	flagReqOne
	flagFastZero
)

// A chunkType is the type of a structured reply chunk.
type chunkType uint16

const (
	chunkNone        chunkType = 0
	chunkData        chunkType = 1
	chunkHole        chunkType = 2
	chunkBlockStatus chunkType = 5
	chunkError       chunkType = 1<<15 + 1

	flagDone = 1 << 0 // of a chunk
)

// An errno is an error value of the protocol, or 0.
type errno uint32

const (
	ok           errno = 0
	notPermitted errno = 1
	ioError      errno = 5
	invalid      errno = 22
	noSpace      errno = 28
	notSupported errno = 95
)

const (
	optionHeader  = 16
	requestHeader = 28
	simpleHeader  = 16
	chunkHeader   = 20
)
