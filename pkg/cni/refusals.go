// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// refusal is a reason why an API server refuses a request, and what a person can do.
type refusal struct {
	// reason of the answer; empty for any.
	reason metav1.StatusReason
	// words that the message of the answer contains.
	words string
	// advice, in which NAME stands for what follows the words in the message.
	advice string
}

const (
	adviceOnToken = "they may be revoked, or be those of another cluster"
	adviceOnProxy = "something in front of the API server answers in its place"
)

// refusals are tried in turn, and the first that matches is used. Messages that quote
// another program's text come first, since that may contain the words of the others.
var refusals = []refusal{
	{words: `failed calling webhook "`, advice: "admission webhook NAME does not answer the API server; whoever runs it has to repair it, or to leave ipallocations out of its configuration"},
	{words: `admission webhook "`, advice: "admission webhook NAME refused it, in the words above; ask whoever runs it"},
	{words: "ValidatingAdmissionPolicy '", advice: "admission policy NAME refused it, in the words above; see kubectl get validatingadmissionpolicy NAME -o yaml, and its bindings"},
	{words: "MutatingAdmissionPolicy '", advice: "admission policy NAME failed, in the words above; see kubectl get mutatingadmissionpolicy NAME -o yaml, and its bindings"},
	{reason: metav1.StatusReasonForbidden, words: "exceeded quota: ", advice: "ResourceQuota NAME of the pools' namespace is used up; raise it, or take ipallocations out of it"},
	{reason: metav1.StatusReasonForbidden, words: "status unknown for quota: ", advice: "ResourceQuota NAME of the pools' namespace has not been counted yet, which kube-controller-manager does"},
	{reason: metav1.StatusReasonForbidden, words: "because it is being terminated", advice: "somebody has deleted the pools' namespace; no pod gets an address of its pools, and poolsNamespace has to name another one"},
	{reason: metav1.StatusReasonForbidden, words: `User "system:anonymous" cannot`, advice: "the request had no credentials at all; the user of the current context in that file has none"},
	{reason: metav1.StatusReasonForbidden, words: "no relationship found between node ", advice: "the API server's node authorizer lets a node read only what belongs to pods that are bound to it"},
	{reason: metav1.StatusReasonForbidden, words: `" cannot get resource "nodes"`, advice: "a label in poolName, and the nodeSelector of a pool without blocks, need this node's labels; every kubelet may read its own Node object, another user needs get on nodes, as in overlays/serviceaccount"},
	{reason: metav1.StatusReasonForbidden, words: `" cannot get resource "pods"`, advice: "in a pool with spec.sticky, and on a network with allowPersistentIPs, the pod decides which address it has; every kubelet may read the pods of its node, another user needs get on pods, as in components/persistent-addresses-serviceaccount"},
	{reason: metav1.StatusReasonForbidden, words: `" cannot get resource "ipamclaims"`, advice: "the pod names an IPAMClaim, which the plugin has to read: apply components/persistent-addresses (in overlay serviceaccount components/persistent-addresses-serviceaccount)"},
	{reason: metav1.StatusReasonForbidden, words: `" cannot `, advice: "what that user may do is in ClusterRole " + nodeRole + " and in its RoleBinding in the pools' namespace"},
	{reason: metav1.StatusReasonForbidden, advice: "an admission plugin of the API server refused it, in the words above"},
	{reason: metav1.StatusReasonUnauthorized, advice: adviceOnToken},
	{reason: metav1.StatusReasonInvalid, advice: "the CRD's rules refused it, in the words above; the CRDs of nv-ipam.nvidia.com and the plugin may be of different versions: apply the CRDs of the plugin's version"},
	{reason: metav1.StatusReasonNotFound, words: `namespaces "`, advice: "the pools' namespace NAME does not exist; is poolsNamespace right?"},
}

// adviceOnRefusal returns what to do if the API server itself has refused a request,
// else nothing.
func adviceOnRefusal(err error) string {
	var answer apierrors.APIStatus
	if !errors.As(err, &answer) {
		return ""
	}
	status := answer.Status()
	if apierrors.IsUnexpectedServerError(err) {
		if status.Reason == metav1.StatusReasonForbidden || status.Reason == metav1.StatusReasonUnauthorized {
			return adviceOnProxy
		}
		return "" // see adviceOnServer
	}
	for _, r := range refusals {
		_, tail, found := strings.Cut(status.Message, r.words)
		if found && (r.reason == "" || r.reason == status.Reason) {
			name, _, _ := strings.Cut(tail, ",")
			name, _, _ = strings.Cut(name, `"`)
			name, _, _ = strings.Cut(name, "'")
			return strings.ReplaceAll(r.advice, "NAME", name)
		}
	}
	return ""
}
