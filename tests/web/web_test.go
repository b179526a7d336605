// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// Each view says what there is, and texts from the cluster are texts.
func TestViews(t *testing.T) {
	s := newScene(t)
	s.condition(t, "rail1", v1alpha1.ConditionBlockFull, metav1.ConditionTrue, "Full", hostile)
	a := rig.Allocation("storage", "10.4.7.10", "worker-2", s.gone("db-1"), "sandbox-db-1")
	a.Spec.InterfaceName = "<s>net1"
	s.Claim(t, s.IPAM, a)
	p := browse(t, serve(t, env.Kubeconfig), 1280, 900)

	p.says(t, "#live", "live")
	p.says(t, "#cluster", clusterName(t, env.Kubeconfig))
	if at := eval[string](t, p, "location.href"); strings.Contains(at, "token") {
		t.Errorf("the token is in the address %s", at)
	}
	p.says(t, "main", "rail1", "10.1.0.0/24", "4 of ", "storage", "2 of 65,534", "v6", "wrong", "InvalidSpec", "spec.gateway", hostile)
	p.says(t, "#leaks", "4") // train-7, train-9, db-0, db-1
	if n := eval[int](t, p, "document.querySelectorAll('main img, main s').length"); n != 0 {
		t.Errorf("%d elements were made of a text", n)
	}

	p.open(t, s.link("IPPool", "rail1"))
	p.says(t, "main", "Pools › rail1", "in use 1", "reserved 1", "looks leaked 1", "held back 1", "excluded 3", "gateway 1", "in no block", hostile)

	p.open(t, s.link("IPPool", "storage"))
	p.says(t, "main", "looks leaked 2", "free 65,532", "excluded 2", "Names are without 10.4.")
	if n := eval[int](t, p, "Number(document.querySelector('.map canvas').dataset.drawn)"); n != 256 {
		t.Errorf("%d windows are drawn, want 256", n)
	}
	p.open(t, s.link("IPPool", "storage")+"/10.4.7.0-10.4.7.255")
	p.says(t, ".holders", "10.4.7.9", "db-0", "looks leaked", "10.4.7.10", "<s>net1", "worker-2")

	p.open(t, s.link("CIDRPool", "v6"))
	p.says(t, "main", "Each bar shows how full a range is.", "2 blocks")
	p.open(t, s.link("CIDRPool", "v6")+"/fd00:10::-fd00:10::ffff:ffff:ffff:ffff")
	p.says(t, "main", "Only ranges in which something is held are shown.", "in use 2", "Node worker-1")
	if n := eval[int](t, p, "Number(document.querySelector('.map canvas').dataset.drawn)"); n != 2 {
		t.Errorf("%d windows are drawn, want 2", n)
	}

	p.open(t, s.link("IPPool", "wrong"))
	p.says(t, "main", "InvalidSpec", "10.8.0.1")

	p.open(t, "#/leaks")
	p.says(t, "main", "3 look leaked", "1 are held back", "kubectl ipam release -n "+s.NS+" rail1.10.1.0.3", "kubectl ipam release -n "+s.NS+" rail1.10.1.0.33", "node_unreachable", "its node does not answer")

	for text, want := range map[string][]string{
		"train-0": {"3 addresses are held", "10.1.0.2", "fd00:10::1:5"}, "worker-3": {"1 address is held", "10.1.0.33"}, "sandbox-db-0": {"10.4.7.9"},
		"10.4.7.9": {"db-0", "Show it in pool storage"}, "10.4.200.1": {"Nobody holds 10.4.200.1.", "Show it in pool storage"}, "192.0.2.1": {"Nobody holds 192.0.2.1, and no pool has it."}, hostile: {"Nobody holds"},
	} {
		p.open(t, "#/search/"+url.PathEscape(text))
		p.says(t, "main", want...)
	}
	if title := eval[string](t, p, "document.title"); title == "owned" {
		t.Error("a text ran as a script")
	}
}

// All that the pointer does is done with keys as well.
func TestKeys(t *testing.T) {
	s := newScene(t)
	p := browse(t, serve(t, env.Kubeconfig), 1280, 900)
	p.says(t, "#live", "live")
	hash := func(want string) {
		t.Helper()
		p.until(t, "decodeURIComponent(location.hash) === "+quoted(want))
	}

	p.slash(t)
	p.press(t, "10.1.0.3", kb.Enter)
	hash("#/search/10.1.0.3")
	p.says(t, "main", "train-7")
	eval[chromedp.Void](t, p, "document.querySelector('.holders a').focus()")
	p.press(t, kb.Enter)
	hash(s.link("IPPool", "rail1") + "/@10.1.0.3")
	p.says(t, "#details", "10.1.0.3", "looks leaked", "train-7", "worker-1", "net1", "kubectl ipam release")

	eval[chromedp.Void](t, p, "document.querySelector('.map canvas').focus()")
	p.press(t, kb.ArrowLeft)
	p.says(t, "#details", "10.1.0.2", "in use", "train-0", "pod exists")
	p.says(t, ".tip", "10.1.0.2 in use", s.NS+"/train-0", "on worker-1")
	p.press(t, kb.Home)
	p.says(t, "#details", "10.1.0.1", "gateway")
	p.press(t, kb.ArrowRight, kb.ArrowRight, kb.ArrowRight)
	p.says(t, "#details", "10.1.0.4", "reserved")
	p.press(t, kb.ArrowRight)
	p.says(t, "#details", "10.1.0.5", "free", "Nobody holds it.")
	p.press(t, kb.ArrowDown)
	p.says(t, "#details", "10.1.0.13", "free")
	p.press(t, kb.ArrowRight)
	p.says(t, "#details", "10.1.0.14", "excluded")
	p.press(t, kb.ArrowUp, kb.ArrowLeft, kb.ArrowLeft, kb.ArrowLeft, kb.Enter)
	p.until(t, "document.querySelector('#details').contains(document.activeElement)")
	p.press(t, kb.Escape)
	p.until(t, "document.activeElement.matches('.map canvas')")

	p.press(t, kb.Escape)
	hash(s.link("IPPool", "rail1"))
	p.says(t, "#details", "Node worker-1", "10.1.0.1 – 10.1.0.16", "3 held of 12")
	p.press(t, kb.ArrowRight, kb.ArrowRight)
	p.says(t, "#details", "Node worker-3", "1 held of 16", "1 held back")
	p.press(t, kb.Enter)
	hash(s.link("IPPool", "rail1") + "/10.1.0.33-10.1.0.48")
	p.says(t, "main", "Pools › rail1 › Node worker-3")
	p.press(t, kb.Escape)
	hash(s.link("IPPool", "rail1"))
	p.press(t, kb.Escape)
	hash("#/pools")

	// With Tab, each thing that can be done is reached.
	p.says(t, "main", "rail1", "wrong")
	eval[chromedp.Void](t, p, "document.activeElement.blur()")
	seen := map[string]bool{}
	for range 12 {
		p.press(t, kb.Tab)
		seen[eval[string](t, p, "document.activeElement.id || document.activeElement.innerText")] = true
	}
	for _, want := range []string{"text", "Pools", "rail1", "storage", "v6", "wrong"} {
		if !seen[want] {
			t.Errorf("Tab does not reach %q, only %v", want, seen)
		}
	}
}

// The pointer shows the holder.
func TestPointer(t *testing.T) {
	s := newScene(t)
	p := browse(t, serve(t, env.Kubeconfig), 1280, 900)
	p.says(t, "#live", "live")
	p.open(t, s.link("IPPool", "rail1")+"/10.1.0.1-10.1.0.16")
	p.says(t, ".holders", "train-0")
	p.hover(t, 46+30+15, 15) // the second one of a row
	p.says(t, ".tip", "10.1.0.2 in use", "train-0")
	p.hover(t, 46+60+15, 15)
	p.says(t, ".tip", "10.1.0.3 looks leaked", "train-7")
}

// The page shows what happens, and draws only what has changed.
func TestLive(t *testing.T) {
	s := newScene(t)
	p := browse(t, serve(t, env.Kubeconfig), 1280, 900)
	p.says(t, "#live", "live")
	p.says(t, "#leaks", "3")
	p.open(t, s.link("IPPool", "rail1"))
	p.says(t, ".legend", "in use 1")
	s.claim(t, "rail1", "10.1.0.20", "worker-2", s.pod)
	p.says(t, ".legend", "in use 1", "looks leaked 2") // the pod is on another node
	if n := eval[int](t, p, "Number(document.querySelector('.map canvas').dataset.drawn)"); n > 1 {
		t.Errorf("%d parts were drawn again, want 1", n)
	}
	p.says(t, "#leaks", "4")
	p.says(t, ".facts", "5 of ")

	if err := s.IPAM.IPAllocations(s.NS).Delete(t.Context(), "rail1.10.1.0.20", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.says(t, ".legend", "looks leaked 1")
	p.says(t, "#leaks", "3")

	p.open(t, "#/leaks")
	p.says(t, "main", "train-7")
	if err := s.IPAM.IPAllocations(s.NS).Delete(t.Context(), "rail1.10.1.0.3", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.until(t, "!document.querySelector('main').innerText.includes('train-7')")

	p.open(t, s.link("IPPool", "rail1"))
	p.says(t, ".legend", "in use 1")
	if err := s.IPAM.IPPools(s.NS).Delete(t.Context(), "rail1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.says(t, "main", "The pool is gone", "What is shown is what it had then.", "in use 1")
	rig.IPPool(t, s.IPAM, s.NS, "rail1", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 16}, "worker-1")
	p.until(t, "!document.querySelector('main').innerText.includes('The pool is gone')")
	p.saysNot(t, "main", "gateway")

	p.open(t, s.link("IPPool", "never"))
	p.says(t, "main", "there is no IPPool "+s.NS+"/never")
}

// While the API server is away, the page says so and shows what it had. It recovers by
// itself.
func TestOutage(t *testing.T) {
	s := newScene(t)
	p := browse(t, serve(t, env.Kubeconfig), 1280, 900)
	p.says(t, "#live", "live")
	p.says(t, "main", "rail1")
	start := sync.OnceValue(env.StartAPIServer)
	t.Cleanup(func() { _ = start() }) // for the other tests, if this one fails
	if err := env.KillAPIServer(); err != nil {
		t.Fatal(err)
	}
	p.says(t, "#live", "old since")
	p.says(t, "#notes", "The API server has not answered since", "What is shown is of that time.", "connection refused")
	p.says(t, "main", "rail1")
	p.open(t, s.link("IPPool", "rail1"))
	p.says(t, ".legend", "in use 1")
	if err := start(); err != nil {
		t.Fatal(err)
	}
	p.says(t, "#live", "live")
	p.until(t, "document.querySelector('#notes').innerText === ''")
	s.claim(t, "rail1", "10.1.0.5", "worker-1", s.pod)
	p.says(t, ".legend", "in use 2")
}

// Who may not read something is told what, in the API server's words, and sees the rest.
func TestRights(t *testing.T) {
	s := newScene(t)
	user := s.NS + "-reader"
	kubeconfig, err := env.UserKubeconfig(user)
	if err != nil {
		t.Fatal(err)
	}
	grant := func(name string, rules ...rbacv1.PolicyRule) {
		t.Helper()
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user + "-" + name}, Rules: rules}
		if _, err := s.Kube.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.Name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
		}
		if _, err := s.Kube.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(group string, resources ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: []string{"get", "list", "watch"}}
	}

	p := browse(t, serve(t, kubeconfig), 1280, 900)
	p.says(t, "#notes", "You may not read ippools.", fmt.Sprintf(`ippools.nv-ipam.nvidia.com is forbidden: User "%s" cannot list resource "ippools"`, user), "You may not read pods. What leaks is not known.")
	p.saysNot(t, "main", "rail1", "There are no pools.")

	grant("pools", read(v1alpha1.GroupVersion.Group, "ippools", "cidrpools", "ipallocations"))
	p.do(t, chromedp.Navigate(serve(t, kubeconfig))) // it looks for namespaces once
	p.says(t, "main", "rail1", "storage")
	p.says(t, "#notes", "You may not read nodes.", "You may not read pods. What leaks is not known.", `cannot list resource "pods"`)
	p.saysNot(t, "#notes", "ippools")
	p.open(t, "#/leaks")
	p.says(t, "main", "What leaks is not known")
	p.open(t, "#/search/10.1.0.3")
	p.says(t, "main", "train-7", "not known")

	grant("pods", read("", "pods", "nodes")) // the page notices
	p.says(t, "#live", "live")
	p.says(t, "main", "looks leaked")
	p.until(t, "document.querySelector('#notes').innerText === ''")
}

// In a narrow window nothing is cut off, and in dark mode the page is dark.
func TestNarrowAndDark(t *testing.T) {
	s := newScene(t)
	p := browse(t, serve(t, env.Kubeconfig), 360, 740)
	p.says(t, "#live", "live")
	dark(t, p)
	for _, view := range []string{"#/pools", "#/leaks", "#/search/train", s.link("IPPool", "rail1"), s.link("IPPool", "rail1") + "/10.1.0.1-10.1.0.16", s.link("IPPool", "storage"), s.link("CIDRPool", "v6")} {
		p.open(t, view)
		if wide := eval[string](t, p, `[...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5 && !e.closest(".unseen")).map((e) => e.tagName + "." + e.className).join(", ")`); wide != "" {
			t.Errorf("%s: wider than the window: %s", view, wide)
		}
		for what, expression := range map[string]string{
			"the page": "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((n) => Number(n) < 60)",
			"the text": "getComputedStyle(document.body).color.match(/\\d+/g).every((n) => Number(n) > 180)",
		} {
			if !eval[bool](t, p, expression) {
				t.Errorf("%s: in dark mode, %s has the wrong brightness", view, what)
			}
		}
	}
}

func dark(t *testing.T, p *page) {
	t.Helper()
	p.do(t, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}})
		return err
	}))
}
