// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/http"
)

// Probes answers the kubelet: /healthz if the process serves at all, /readyz if it is
// ready as well.
func Probes(ready func() bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			http.Error(w, "waiting for the caches", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
