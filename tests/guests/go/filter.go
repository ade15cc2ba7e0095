// A filter for Envoy in plain Go, by the words of the ABI alone: it adds its configuration to requests, refuses, calls an
// upstream and goes on with its answer, and shouts bodies.
package main

import (
	"bytes"
	"fmt"
	"unsafe"
)

const (
	requestHeaders  = 0
	responseHeaders = 2
	callHeaders     = 6

	requestBody         = 0
	callBody            = 4
	pluginConfiguration = 7

	goOn = 0
	wait = 1
)

//go:wasmimport env proxy_log
func log(level uint32, message string) uint32

//go:wasmimport env proxy_get_header_map_value
func getHeader(kind uint32, name string, value, length unsafe.Pointer) uint32

//go:wasmimport env proxy_add_header_map_value
func addHeader(kind uint32, name, value string) uint32

//go:wasmimport env proxy_get_buffer_bytes
func getBuffer(kind, start, size uint32, data, length unsafe.Pointer) uint32

//go:wasmimport env proxy_set_buffer_bytes
func setBuffer(kind, start, size uint32, data string) uint32

//go:wasmimport env proxy_send_local_response
func respond(status uint32, details, body, headers string, grpc int32) uint32

//go:wasmimport env proxy_http_call
func call(upstream, headers, body, trailers string, milliseconds uint32, id unsafe.Pointer) uint32

//go:wasmimport env proxy_continue_stream
func resume(stream uint32) uint32

//go:wasmimport env proxy_set_effective_context
func setContext(context uint32) uint32

//go:wasmexport proxy_abi_version_0_2_1
func abi() {}

// What the host has asked memory for and has not handed over yet: nobody else holds it.
var lent = map[uintptr][]byte{}

//go:wasmexport proxy_on_memory_allocate
func allocate(size uint32) unsafe.Pointer {
	place := make([]byte, size+1)
	start := unsafe.Pointer(&place[0])
	lent[uintptr(start)] = place[:size]
	return start
}

// What the host has written for a question, and whether there is anything.
func answered(ask func(data, length unsafe.Pointer) uint32) ([]byte, bool) {
	var data, length uint32
	if ask(unsafe.Pointer(&data), unsafe.Pointer(&length)) != 0 {
		return nil, false
	}
	found := lent[uintptr(data)]
	delete(lent, uintptr(data))
	return found[:length], true
}

func header(kind uint32, name string) string {
	value, _ := answered(func(data, length unsafe.Pointer) uint32 { return getHeader(kind, name, data, length) })
	return string(value)
}

func buffer(kind, size uint32) []byte {
	found, _ := answered(func(data, length unsafe.Pointer) uint32 { return getBuffer(kind, 0, size, data, length) })
	return found
}

// Pairs as the host reads them: their number, the lengths, then names and values with a zero behind each.
func pairs(all ...string) string {
	var lengths, texts bytes.Buffer
	number := func(n int) { lengths.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}) }
	number(len(all) / 2)
	for _, text := range all {
		number(len(text))
		texts.WriteString(text + "\x00")
	}
	return lengths.String() + texts.String()
}

var greeting string

//go:wasmexport proxy_on_vm_start
func onStart(context, size uint32) uint32 { return 1 }

//go:wasmexport proxy_on_configure
func onConfigure(context, size uint32) uint32 {
	greeting = string(buffer(pluginConfiguration, size))
	if greeting == "" {
		log(4, "no greeting")
		return 0
	}
	return 1
}

//go:wasmexport proxy_on_context_create
func onContext(context, root uint32) {}

//go:wasmexport proxy_on_request_headers
func onRequest(context, count, ended uint32) uint32 {
	addHeader(requestHeaders, "x-greeting", greeting)
	act := header(requestHeaders, "x-do")
	switch act {
	case "refuse":
		respond(403, "refused", "no", pairs("x-by", "go"), -1)
		return wait
	case "call", "call-slowly":
		var id uint32
		path := map[string]string{"call": "/body/called", "call-slowly": "/hold"}[act]
		headers := pairs(":method", "GET", ":path", path, ":authority", "api")
		if call("api", headers, "", pairs(), 100, unsafe.Pointer(&id)) == 0 {
			callers[id] = context
			return wait
		}
	case "panic":
		panic("asked to")
	case "garbage":
		// Enough for Go to collect several times, and for its memory to grow.
		kept := 0
		for i := range 200 {
			kept += len(fmt.Sprint(make([]byte, 10_000), i)) & 1
		}
	}
	return goOn
}

// Whose calls there are: whatever comes of one, it is the plugin's own context that is told.
var callers = map[uint32]uint32{}

//go:wasmexport proxy_on_http_call_response
func onCalled(root, call, headers, size, trailers uint32) {
	status, body := header(callHeaders, ":status"), string(buffer(callBody, size))
	setContext(callers[call])
	delete(callers, call)
	addHeader(requestHeaders, "x-called", fmt.Sprint("of ", root, ": ", status, " ", body))
	resume(0)
}

//go:wasmexport proxy_on_request_body
func onRequestBody(context, size, ended uint32) uint32 {
	setBuffer(requestBody, 0, size, string(bytes.ToUpper(buffer(requestBody, size))))
	return goOn
}

//go:wasmexport proxy_on_response_headers
func onResponse(context, count, ended uint32) uint32 {
	addHeader(responseHeaders, "x-greeting", greeting)
	return goOn
}

//go:wasmexport proxy_on_done
func onDone(context uint32) uint32 { return 1 }

func main() {}
