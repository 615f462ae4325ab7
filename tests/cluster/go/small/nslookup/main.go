// Nslookup prints the addresses of a name, looked for in the pod's search domains, and fails when there is none. Debian's
// busybox fails when any of those domains does not have the name, and the training operator's init container trusts the
// exit code.
package main

import (
	"fmt"
	"net"
	"os"
	"strings"
)

func main() {
	addresses, err := net.LookupHost(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(strings.Join(addresses, "\n"))
}
