// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import "strings"

// cause is what a runtime's message may be about. The first that matches is used.
type cause struct {
	words string // that the message contains
	is    string // what that means
	mend  string
}

// keptInUse is how the plugin says that another container has the pod's own address.
const keptInUse = "the address that the pod keeps is in use"

var causes = []cause{
	{"ValidatingAdmissionPolicy '", "refused by an admission policy", "kubectl get validatingadmissionpolicies,validatingadmissionpolicybindings; docs/security.md says what a node may do"},
	{"admission webhook \"", "refused by an admission webhook", "ask whoever runs the webhook"},
	{"failed calling webhook \"", "an admission webhook does not answer", "repair the webhook, or leave ipallocations out of its configuration"},
	{"exceeded quota", "refused by a ResourceQuota of the pools' namespace", "kubectl get resourcequotas -n NAMESPACE of the pools"},
	{"is being terminated", "the pools' namespace is being deleted", "kubectl get namespaces"},
	{keptInUse, "another container has the address that the pod keeps", "wait until that one has ended, or see who it is: kubectl ipam who ADDRESS"},
	{"reading IPAMClaim ", "the IPAMClaim that the pod names could not be read", "apply the claim in the pod's namespace; docs/virtual-machines.md says what else it needs"},
	{"IPAMClaim ", "the IPAMClaim that the pod names does not suit", "docs/virtual-machines.md"},
	{"requested IP is already reserved", "the address that the pod asks for was held when it asked", "the next try may succeed: kubectl ipam who ADDRESS"},
	{"no free addresses in the pool", "the pool was exhausted when the pod asked", "the next try may succeed: kubectl ipam free POOL"},
	{"allocations were lost", "the record was lost, and nodes write it again", "wait: docs/reliability.md"},
	{"API server unavailable", "the node did not reach the API server", "see the control plane, and the network between the node and it"},
	{"is forbidden", "refused by the API server: the node's credentials may not", "see whose credentials the message names, and docs/security.md"},
	{"Unauthorized", "the API server does not accept the node's credentials", "see which kubeconfig the message names"},
	{`failed to find plugin "nv-ipam"`, "this project's plugin is missing on the node", "kubectl get pods -A -l component=nv-ipam-node -o wide: the installer on the node"},
	{"failed to find plugin", "another CNI plugin is missing on the node", "install the plugin that the message names, in a directory that it names"},
}

// explain says what a message is about, in the words of whoever said it.
func explain(message string) (reason, mend string) {
	for _, c := range causes {
		if strings.Contains(message, c.words) {
			return c.is + ": " + message, c.mend
		}
	}
	return "the runtime says: " + message, "the message is the main plugin's, multus' or the runtime's if it names neither a pool nor the API server"
}
