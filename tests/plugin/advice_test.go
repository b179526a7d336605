// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

func (c *cluster) kube(t *testing.T) kubernetes.Interface {
	t.Helper()
	kube, err := kubernetes.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	return kube
}

// must ends the test where making something has failed.
func must[T any](t *testing.T) func(T, error) T {
	return func(made T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
}

// refuses waits until the API server refuses an allocation with these words: what
// was made may not be in force at once.
func (c *cluster) refuses(t *testing.T, words string) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		_, err := c.IPAM.IPAllocations(c.NS).Create(ctx, &v1alpha1.IPAllocation{
			ObjectMeta: metav1.ObjectMeta{Name: "canary.10.9.9.9"},
			Spec: v1alpha1.IPAllocationSpec{
				PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "canary"}, Address: "10.9.9.9",
				PodRef: v1alpha1.PodReference{Namespace: "default", Name: "canary"}, NodeName: "a", ContainerID: "c", InterfaceName: "net1",
			},
		}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil && strings.Contains(err.Error(), words), nil
	})
	if err != nil {
		t.Fatalf("no refusal with %q: %v", words, err)
	}
}

// rewriting is a proxy in front of the API server that changes each create.
func rewriting(t *testing.T, path string, change func(req *http.Request, body []byte) []byte) {
	t.Helper()
	p := newProxy(t)
	p.Fail(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPost {
			body, err := io.ReadAll(req.Body)
			if err != nil {
				t.Error(err)
			}
			body = change(req, body)
			req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
		p.Forward.ServeHTTP(w, req)
	})
	p.Kubeconfig(t, path)
}

// Whatever a real API server refuses an ADD for, the advice fits the cause.
func TestAdviceFitsItsCause(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		refuse func(t *testing.T, c *cluster, path string) // may write a kubeconfig
		words  []string
	}{
		{"quota", func(t *testing.T, c *cluster, _ string) { c.quota(t) }, []string{"exceeded quota: small", "ResourceQuota small of the pools' namespace"}},
		{"namespace ends", func(t *testing.T, c *cluster, _ string) {
			if err := c.kube(t).CoreV1().Namespaces().Delete(t.Context(), c.NS, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			c.refuses(t, "being terminated")
		}, []string{"being terminated", "deleted the pools' namespace"}},
		{"policy", func(t *testing.T, c *cluster, _ string) { c.policy(t, metav1.StatusReasonForbidden) }, []string{"not today", "get validatingadmissionpolicy p-", "-o yaml"}},
		{"policy that says invalid", func(t *testing.T, c *cluster, _ string) { c.policy(t, "") }, []string{"not today", "get validatingadmissionpolicy p-"}},
		{"webhook", func(t *testing.T, c *cluster, _ string) { c.webhook(t, true) }, []string{"not now", "admission webhook deny.example.com refused it"}},
		{"webhook that is away", func(t *testing.T, c *cluster, _ string) { c.webhook(t, false) }, []string{"API server unavailable", "admission webhook deny.example.com does not answer"}},
		{"no credentials", func(t *testing.T, _ *cluster, path string) {
			rig.WriteKubeconfig(t, path, env.Config.Host, env.Config.CAData, &clientcmdapi.AuthInfo{})
		}, []string{"system:anonymous", "no credentials at all"}},
		{"namespace is missing", func(t *testing.T, c *cluster, path string) {
			rewriting(t, path, func(req *http.Request, body []byte) []byte {
				req.URL.Path = strings.Replace(req.URL.Path, c.NS, "nowhere", 1)
				return bytes.ReplaceAll(body, []byte(c.NS), []byte("nowhere"))
			})
		}, []string{`namespaces "nowhere" not found`, "pools' namespace nowhere does not exist"}},
		{"CRD's rules", func(t *testing.T, _ *cluster, path string) {
			rewriting(t, path, func(_ *http.Request, body []byte) []byte {
				return bytes.ReplaceAll(body, []byte(`"address":"10.`), []byte(`"address":"11.`))
			})
		}, []string{"is invalid", "the CRD's rules refused it"}},
		{"page of a proxy", func(t *testing.T, _ *cluster, path string) {
			behind(text(http.StatusForbidden, "text/html", "<html>blocked</html>"))(t, path)
		}, []string{"in front of the API server"}},
		{"proxy-url refuses", func(t *testing.T, _ *cluster, path string) {
			proxy := newForwardProxy(t, true)
			admin(t, path, func(cluster *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { cluster.ProxyURL = proxy.URL })
		}, []string{"Forbidden", "through the kubeconfig's proxy-url http://127.0.0.1:"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.blocks(t, "a")
			h := c.host(t, "a")
			path := filepath.Join(h.dir, "its.kubeconfig")
			admin(t, path, nil)
			tc.refuse(t, c, path)
			h.use(t, c, path)
			h.wantError(t, call{verb: "ADD", container: "c1"}, 11, append([]string{path}, tc.words...)...)
		})
	}
}

// quota uses up the namespace's quota of allocations. Its status is a controller's
// work, which nobody does here.
func (c *cluster) quota(t *testing.T) {
	t.Helper()
	quotas := c.kube(t).CoreV1().ResourceQuotas(c.NS)
	hard := corev1.ResourceList{"count/ipallocations.nv-ipam.nvidia.com": resource.MustParse("0")}
	q := must[*corev1.ResourceQuota](t)(quotas.Create(t.Context(), &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "small"}, Spec: corev1.ResourceQuotaSpec{Hard: hard},
	}, metav1.CreateOptions{}))
	q.Status = corev1.ResourceQuotaStatus{Hard: hard, Used: hard}
	must[*corev1.ResourceQuota](t)(quotas.UpdateStatus(t.Context(), q, metav1.UpdateOptions{}))
	c.refuses(t, "exceeded quota: small")
}

var allocations = admissionregistrationv1.Rule{APIGroups: []string{v1alpha1.GroupName}, APIVersions: []string{"*"}, Resources: []string{"ipallocations"}}

func (c *cluster) selector() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: c.NS}}
}

// policy makes an admission policy that refuses every allocation in the namespace.
func (c *cluster) policy(t *testing.T, reason metav1.StatusReason) {
	t.Helper()
	api := c.kube(t).AdmissionregistrationV1()
	name := "p-" + c.NS
	validation := admissionregistrationv1.Validation{Expression: "false", Message: "not today"}
	if reason != "" {
		validation.Reason = &reason
	}
	must[*admissionregistrationv1.ValidatingAdmissionPolicy](t)(api.ValidatingAdmissionPolicies().Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionregistrationv1.MatchResources{NamespaceSelector: c.selector(), ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{
				RuleWithOperations: admissionregistrationv1.RuleWithOperations{Operations: []admissionregistrationv1.OperationType{"CREATE"}, Rule: allocations},
			}}},
			Validations: []admissionregistrationv1.Validation{validation},
		},
	}, metav1.CreateOptions{}))
	must[*admissionregistrationv1.ValidatingAdmissionPolicyBinding](t)(api.ValidatingAdmissionPolicyBindings().Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: name, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
		},
	}, metav1.CreateOptions{}))
	c.refuses(t, "not today")
}

// webhook registers a webhook that refuses every allocation in the namespace, or
// that does not answer.
func (c *cluster) webhook(t *testing.T, answers bool) {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(req.Body).Decode(&review); err != nil {
			t.Error(err)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Result: &metav1.Status{Message: "not now"}}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(review)
	}))
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	words := "not now"
	if !answers {
		server.Close()
		words = "failed calling webhook"
	}
	none := admissionregistrationv1.SideEffectClassNone
	must[*admissionregistrationv1.ValidatingWebhookConfiguration](t)(c.kube(t).AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "w-" + c.NS},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "deny.example.com", ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &server.URL, CABundle: ca}, NamespaceSelector: c.selector(),
			Rules:       []admissionregistrationv1.RuleWithOperations{{Operations: []admissionregistrationv1.OperationType{"CREATE"}, Rule: allocations}},
			SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
		}},
	}, metav1.CreateOptions{}))
	c.refuses(t, words)
}
