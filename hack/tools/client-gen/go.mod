// The last client-gen whose typed clients do not link what their fakes need
// (OpenAPI, server-side apply): since 0.31 they share a package with them, and that
// is a quarter of the time which the CNI plugin, a process for each call, takes to
// start. What it generates is for any version of client-go.
module github.com/crd-ipam/crd-ipam/hack/tools/client-gen

go 1.26.0

tool k8s.io/code-generator/cmd/client-gen

require (
	github.com/go-logr/logr v1.4.1 // indirect
	github.com/spf13/pflag v1.0.5 // indirect
	golang.org/x/mod v0.39.0 // indirect
	golang.org/x/sync v0.22.0 // indirect
	golang.org/x/tools v0.49.0 // indirect
	k8s.io/code-generator v0.30.14 // indirect
	k8s.io/gengo/v2 v2.0.0-20240228010128-51d4e06bde70 // indirect
	k8s.io/klog/v2 v2.120.1 // indirect
)
