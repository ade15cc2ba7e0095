package main

import (
	"strings"
	"unsafe"
)

// The part of http-wasm's handler ABI that this policy uses; all of it: https://http-wasm.io/http-handler-abi/

const (
	request  = 0
	response = 1

	info = 0
)

//go:wasmimport http_handler get_config
func getConfig(buffer unsafe.Pointer, limit uint32) uint32

//go:wasmimport http_handler log
func log(level int32, message string)

//go:wasmimport http_handler get_header_values
func getHeaderValues(kind uint32, name string, buffer unsafe.Pointer, limit uint32) uint64

//go:wasmimport http_handler set_header_value
func setHeader(kind uint32, name, value string)

//go:wasmimport http_handler set_status_code
func setStatus(status uint32)

// The policy's configuration, as JSON.
func readConfig() []byte {
	buffer := make([]byte, 64<<10)
	length := getConfig(unsafe.Pointer(&buffer[0]), uint32(len(buffer)))
	return buffer[:length]
}

// The first value of a header, and whether there is one.
func header(kind uint32, name string) (string, bool) {
	buffer := make([]byte, 1<<10)
	for {
		counted := getHeaderValues(kind, name, unsafe.Pointer(&buffer[0]), uint32(len(buffer)))
		count, length := counted>>32, uint32(counted)
		if int(length) > len(buffer) {
			buffer = make([]byte, length)
			continue
		}
		value, _, _ := strings.Cut(string(buffer[:length]), "\x00")
		return value, count > 0
	}
}
