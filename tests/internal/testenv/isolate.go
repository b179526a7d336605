// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"os"
	"os/exec"
	"syscall"
)

// Isolate gives this process, and all that it starts, a /var/lib/cni of its own: a
// plugin notes in the default directory where else the node's data is. It has to be
// called before anything is started, and it starts the program again. Without root's
// rights it does nothing; then the plugin cannot write there either.
func Isolate() {
	const mark = "TESTENV_ISOLATED"
	if os.Geteuid() != 0 || os.Getenv(mark) != "" {
		return
	}
	unshare, err1 := exec.LookPath("unshare")
	self, err2 := os.Executable()
	if err1 != nil || err2 != nil {
		return
	}
	const script = `mkdir -p /var/lib/cni && mount -t tmpfs none /var/lib/cni && exec "$0" "$@"`
	args := append([]string{"unshare", "--mount", "sh", "-c", script, self}, os.Args[1:]...)
	panic(syscall.Exec(unshare, args, append(os.Environ(), mark+"=1")))
}
