// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package web tests kubectl ipam web with a real browser against a real API server.
package web

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) { os.Exit(testenv.Run(m, &env, testenv.Options{})) }

// serve runs kubectl ipam web until the end of the test, and returns the URL that it prints.
func serve(t *testing.T, kubeconfig string, args ...string) string {
	t.Helper()
	cmd := exec.Command(rig.Binary(t, "kubectl-ipam"), append([]string{"web"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "HOME="+env.Dir)
	stderr := &rig.Log{}
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("kubectl ipam web: %v: %s", err, stderr)
		}
		used := cmd.ProcessState
		t.Logf("kubectl ipam web needed %d MiB and %s", used.SysUsage().(*syscall.Rusage).Maxrss>>10, used.UserTime()+used.SystemTime())
	})
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("kubectl ipam web printed no URL: %v: %s", err, stderr)
	}
	return strings.TrimSpace(url)
}

// page is a tab of a browser.
type page struct {
	ctx context.Context
	// said is what the page wrote to the console; it should be nothing.
	said []string
}

// browse opens a URL in a new browser, of a window of this size.
func browse(t *testing.T, url string, width, height int) *page {
	t.Helper()
	chromium := filepath.Join(rig.Part(t, "CHROMIUM", "chromium"), "browser")
	alloc, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium), chromedp.NoSandbox, chromedp.Flag("headless", "new"), chromedp.Flag("disable-gpu", true),
		chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(width, height))...)
	ctx, closeTab := chromedp.NewContext(alloc)
	p := &page{ctx: ctx}
	console := chromedp.Console(ctx)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for m, err := range console {
			if err != nil {
				return
			}
			p.said = append(p.said, m.String())
		}
	}()
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits for the browser's end
		closeTab()
		cancel()
		<-read
		for _, text := range p.said {
			if !strings.Contains(text, "Failed to load resource") { // the API's own 404, and an end of the server
				t.Errorf("the page wrote to the console: %s", text)
			}
		}
	})
	p.do(t, chromedp.EmulateViewport(int64(width), int64(height)), chromedp.Navigate(url))
	return p
}

// timeout is for whatever the browser is asked: the machine may be busy.
const timeout = 60 * time.Second

func (p *page) do(t *testing.T, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	for _, step := range steps {
		if err := chromedp.Do(p.ctx, step); err != nil {
			t.Fatal(err)
		}
	}
}

// eval returns the value of an expression.
func eval[T any](t *testing.T, p *page, expression string, opts ...chromedp.EvaluateOption) T {
	t.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, opts...))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// until waits until an expression is true.
func (p *page) until(t *testing.T, expression string) {
	t.Helper()
	if _, err := chromedp.Run(p.ctx, chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(timeout))); err != nil {
		t.Fatalf("%s: %v; the page says\n%s", expression, err, p.text(t, "body"))
	}
}

// says waits until an element contains the texts.
func (p *page) says(t *testing.T, selector string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		p.until(t, fmt.Sprintf("%s.includes(%s)", said(selector), quoted(text)))
	}
}

// saysNot is for what must not be there, once the page has said something else.
func (p *page) saysNot(t *testing.T, selector string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if all := p.text(t, selector); strings.Contains(all, text) {
			t.Errorf("%s says %q:\n%s", selector, text, all)
		}
	}
}

// said is the expression for what an element says, on one line.
func said(selector string) string {
	return fmt.Sprintf(`(document.querySelector(%s)?.innerText ?? "").replace(/\s+/g, " ")`, quoted(selector))
}

func (p *page) text(t *testing.T, selector string) string {
	t.Helper()
	return eval[string](t, p, said(selector))
}

// open goes to a view, and waits until it is drawn.
func (p *page) open(t *testing.T, hash string) {
	t.Helper()
	eval[chromedp.Void](t, p, "location.hash = "+quoted(hash))
	p.until(t, "document.querySelector('main > .view:not([aria-busy])') !== null")
}

// press sends keys to what has the focus.
func (p *page) press(t *testing.T, keys ...string) {
	t.Helper()
	for _, k := range keys {
		p.do(t, chromedp.KeyEvent(k))
	}
}

// slash presses the key "/". press would send the character by itself as well, which a
// keyboard does not do if a page has used the key.
func (p *page) slash(t *testing.T) {
	t.Helper()
	p.do(t, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: kb.KeyRawDown, Key: "/", Code: "Slash"})
		return err
	}))
}

// hover points at the middle of the item of the map that begins at an address.
func (p *page) hover(t *testing.T, x, y float64) {
	t.Helper()
	box := eval[struct{ X, Y float64 }](t, p, "(({x, y}) => ({x, y}))(document.querySelector('.map canvas').getBoundingClientRect())")
	p.do(t, chromedp.MouseEvent(chromedp.MouseMoved, box.X+x, box.Y+y))
}

func quoted(text string) string {
	out, _ := json.Marshal(text) // a string always can be
	return string(out)
}

// clusterName is what the page shows of a kubeconfig.
func clusterName(t *testing.T, kubeconfig string) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	return config.CurrentContext
}
