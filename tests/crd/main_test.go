// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package crd tests what the API server refuses: by the CRDs, by the admission
// policies, and in the words of pkg/pool. The cases are data, below testdata.
package crd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// env has the CRDs and no policies.
var env *testenv.Env

func TestMain(m *testing.M) { os.Exit(testenv.Run(m, &env, testenv.Options{})) }

// policyMinor is the first minor version whose CEL reads addresses.
const policyMinor = 31

// object is a manifest with whatever mistakes it is there for.
type object = unstructured.Unstructured

// poolCase is one file of testdata: a pool, and who refuses it with which words.
// Words are a part of the message. A layer without words accepts the pool.
type poolCase struct {
	name string
	// Pool is the manifest; its namespace is the test's.
	Pool map[string]any
	// Valid is true where every layer accepts the pool.
	Valid bool
	// Says is what both the Go rules and the policies say.
	Says string
	// Go and Policy are in place of Says where the two differ.
	Go, Policy string
	// CRD is what the CRD says.
	CRD string
	// OnlyGo is the reason why nothing but the Go rules refuses the pool.
	OnlyGo string
	// OnlyServer is the reason why the Go rules accept the pool.
	OnlyServer string
}

func (c poolCase) inGo() string {
	if c.Go != "" {
		return c.Go
	}
	return c.Says
}

func (c poolCase) inPolicy() string {
	if c.Policy != "" {
		return c.Policy
	}
	if c.OnlyGo != "" {
		return ""
	}
	return c.Says
}

// check says what is wrong with the case itself: the sum of the other layers has
// to be the Go rules, unless the case has a reason.
func (c poolCase) check() error {
	kind, _ := c.Pool["kind"].(string)
	switch {
	case kind != "IPPool" && kind != "CIDRPool":
		return fmt.Errorf("kind %q", kind)
	case c.Valid && c.inGo()+c.CRD+c.inPolicy()+c.OnlyGo+c.OnlyServer != "":
		return errors.New("a valid pool is refused by nobody")
	case c.OnlyServer != "" && (c.inGo() != "" || c.CRD == ""):
		return errors.New("the CRD refuses it and Go does not, or no onlyServer")
	case !c.Valid && c.inGo() == "" && c.OnlyServer == "":
		return errors.New("either the pool is valid or the Go rules refuse it")
	case !c.Valid && c.OnlyGo == "" && c.inPolicy() == "" && c.CRD == "":
		return errors.New("nobody but Go refuses it, and there is no reason in onlyGo")
	case c.OnlyGo != "" && c.CRD+c.inPolicy() != "":
		return errors.New("another layer than Go refuses it: no onlyGo")
	}
	return nil
}

// parse runs the Go rules.
func (c poolCase) parse() error {
	kind := v1alpha1.PoolKind(c.Pool["kind"].(string))
	obj := pool.New(kind)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(c.Pool, obj, true); err != nil {
		return fmt.Errorf("not of kind %s: %w", kind, err)
	}
	_, errs := pool.ObjectOf(obj).Parse()
	return errs.ToAggregate()
}

func readCases(t *testing.T) []poolCase {
	t.Helper()
	files, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var out []poolCase
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c := poolCase{name: strings.TrimSuffix(strings.TrimPrefix(f, "testdata/"), ".yaml")}
		if err := yaml.UnmarshalStrict(data, &c); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		// Numbers as the API server has them.
		obj := &object{}
		raw, err := yaml.ToJSON(data)
		if err == nil {
			err = obj.UnmarshalJSON([]byte(`{"apiVersion":"v1","kind":"Case","case":` + string(raw) + `}`))
		}
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		c.Pool, _, _ = unstructured.NestedMap(obj.Object, "case", "pool")
		if err := c.check(); err != nil {
			t.Errorf("%s: %v", f, err)
		}
		out = append(out, c)
	}
	if len(out) < 40 {
		t.Fatalf("%d cases in testdata", len(out))
	}
	return out
}

// cluster is a server as an administrator with a client for anything sees it.
type cluster struct {
	*testenv.Env
	client dynamic.Interface
}

func newCluster(t *testing.T, e *testenv.Env) *cluster {
	t.Helper()
	config := rest.CopyConfig(e.Config)
	config.WarningHandler = rest.NoWarnings{} // of the mistakes that stored pools have
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{Env: e, client: client}
}

func (c *cluster) of(kind, namespace string) dynamic.ResourceInterface {
	return c.client.Resource(v1alpha1.Resource(strings.ToLower(kind) + "s").WithVersion(v1alpha1.GroupVersion.Version)).Namespace(namespace)
}

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// try asks what the server would say to a new pool, and leaves nothing behind.
func (c *cluster) try(ctx context.Context, manifest map[string]any) error {
	obj := &object{Object: runtime.DeepCopyJSON(manifest)}
	_, err := c.of(obj.GetKind(), "default").Create(ctx, obj, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// wantRefusal checks that err has the words; that there is none, where words are
// empty.
func wantRefusal(t *testing.T, err error, words string) {
	t.Helper()
	switch {
	case words == "" && err != nil:
		t.Errorf("refused: %v", err)
	case words != "" && err == nil:
		t.Errorf("accepted, want %q", words)
	case words != "" && strings.Contains(err.Error(), "resulted in error"):
		t.Errorf("a rule that cannot be evaluated: %v", err)
	case words != "" && !strings.Contains(err.Error(), words):
		t.Errorf("got  %v\nwant %s", err, words)
	}
}

// applyCRDs installs this project's CRDs, as a person would.
func (c *cluster) applyCRDs(t *testing.T) {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), "apply", "--server-side", "--force-conflicts", "-k", filepath.Join(rig.Root(t), "manifests", "base", "crds")); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "CRDs in force", func() bool {
		return c.refuses(t.Context(), ipPool(map[string]any{"subnet": "10.0.0.0/24", "perNodeBlockSize": int64(0)})) &&
			c.refuses(t.Context(), cidrPool(map[string]any{"cidr": "10.0.0.0/24", "perNodeNetworkPrefix": int64(0)}))
	})
}

// applyForeignCRDs installs the pools' CRDs as somebody else may have them: the
// same fields, and no rules.
func (c *cluster) applyForeignCRDs(t *testing.T) {
	t.Helper()
	for _, name := range []string{"ippools", "cidrpools"} {
		data, err := os.ReadFile(filepath.Join(rig.Root(t), "manifests", "base", "crds", "nv-ipam.nvidia.com_"+name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var crd map[string]any
		if err := yaml.Unmarshal(data, &crd); err != nil {
			t.Fatal(err)
		}
		removeRules(crd)
		obj := &object{Object: crd}
		if _, err := c.client.Resource(crdResource).Create(t.Context(), obj, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	rig.Eventually(t, "CRDs served", func() bool {
		return !c.refuses(t.Context(), ipPool(map[string]any{"subnet": "", "perNodeBlockSize": int64(0)})) &&
			!c.refuses(t.Context(), cidrPool(map[string]any{"cidr": "", "perNodeNetworkPrefix": int64(0)}))
	})
}

// removeRules takes out of a schema what is more than fields and their types.
func removeRules(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range []string{"x-kubernetes-validations", "pattern", "enum", "minimum", "minLength", "maxLength", "minItems", "maxItems"} {
			delete(v, k)
		}
		if v["format"] == "cidr" {
			delete(v, "format")
		}
		for _, child := range v {
			removeRules(child)
		}
	case []any:
		for _, child := range v {
			removeRules(child)
		}
	}
}

// applyPolicies installs the component as an overlay does.
func (c *cluster) applyPolicies(t *testing.T) {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), "apply", "-k", rig.Kustomization(t, map[string]any{"components": []string{"components/validation"}})); err != nil {
		t.Fatal(err)
	}
	for _, canary := range []map[string]any{
		ipPool(map[string]any{"subnet": "x", "perNodeBlockSize": int64(1)}),
		cidrPool(map[string]any{"cidr": "x", "perNodeNetworkPrefix": int64(24)}),
		ipPool(map[string]any{"subnet": "10.0.0.0/24", "perNodeBlockSize": int64(0)}),
		cidrPool(map[string]any{"cidr": "10.0.0.0/24", "perNodeNetworkPrefix": int64(0)}),
	} {
		rig.Eventually(t, "policies in force", func() bool { return c.refuses(t.Context(), canary) })
	}
}

func (c *cluster) refuses(ctx context.Context, manifest map[string]any) bool {
	return c.try(ctx, manifest) != nil
}

func ipPool(spec map[string]any) map[string]any { return manifest("IPPool", spec) }

func cidrPool(spec map[string]any) map[string]any { return manifest("CIDRPool", spec) }

func manifest(kind string, spec map[string]any) map[string]any {
	return map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": kind,
		"metadata": map[string]any{"name": "pool1", "namespace": "default"}, "spec": spec,
	}
}
