// Refuses requests with the header `x-refuse`, and greets the upstream with the others.
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

type config struct {
	Greeting string `json:"greeting"`
}

var configured = config{Greeting: "hello"}

// Runs when the policy is loaded; who exits refuses the load.
func init() {
	if err := json.Unmarshal(readConfig(), &configured); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

//go:wasmexport handle_request
func handleRequest() uint64 {
	if _, refuse := header(request, "x-refuse"); refuse {
		setStatus(403)
		return 0
	}
	setHeader(request, "x-policy", configured.Greeting)
	return 1
}

//go:wasmexport handle_response
func handleResponse(context, isError uint32) {}

func main() {}
