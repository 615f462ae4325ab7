// Nslookup says by its exit code whether a name resolves, over the pod's search domains. Debian's busybox fails when any
// of those domains does not have the name, and the training operator's init container trusts the exit code.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	addresses, err := net.LookupHost(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(addresses)
}
