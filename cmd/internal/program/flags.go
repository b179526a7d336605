// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package program

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"
)

// Log is how a program logs.
type Log struct {
	Verbosity int
	Format    string // text or json
}

// Flags adds the log's flags, and accepts those that nv-ipam's programs have beyond.
func (l *Log) Flags(fs *flag.FlagSet, accepted *Accepted) {
	fs.IntVar(&l.Verbosity, "v", 0, "verbosity of the log: 0 what was done, 2 what was retried, 4 every decision")
	fs.StringVar(&l.Format, "logging-format", "text", "text or json")

	accepted.Flag(fs, "feature-gates", isList(isBool))
	accepted.Flag(fs, "vmodule", isList(isNumber))
	accepted.Flag(fs, "log-flush-frequency", isDuration)
	for _, format := range []string{"text", "json"} {
		accepted.Switch(fs, "log-"+format+"-split-stream")
		accepted.Flag(fs, "log-"+format+"-info-buffer-size", isQuantity)
	}
	// klog's own, which programs of before have.
	for _, name := range []string{"alsologtostderr", "logtostderr", "one_output", "skip_headers", "skip_log_headers", "add_dir_header"} {
		accepted.Switch(fs, name)
	}
	for _, name := range []string{"log_dir", "log_file", "log_backtrace_at", "stderrthreshold"} {
		accepted.Flag(fs, name, func(string) error { return nil })
	}
	accepted.Flag(fs, "log_file_max_size", isNumber)
}

// Check says what is wrong with the values.
func (l *Log) Check() error {
	if l.Format != "text" && l.Format != "json" {
		return fmt.Errorf("--logging-format must be text or json, not %q", l.Format)
	}
	if l.Verbosity < 0 {
		return fmt.Errorf("--v must not be negative: %d", l.Verbosity)
	}
	return nil
}

// SetUp sends klog's output, client-go's too, through slog: levels above 0 are
// negative there.
func (l *Log) SetUp() *slog.Logger {
	var level klog.Level
	_ = level.Set(strconv.Itoa(l.Verbosity)) // sets klog's own; a number is never an error
	handling := &slog.HandlerOptions{Level: slog.Level(-l.Verbosity)}
	var handler slog.Handler = slog.NewTextHandler(os.Stderr, handling)
	if l.Format == "json" {
		handler = slog.NewJSONHandler(os.Stderr, handling)
	}
	log := slog.New(handler)
	klog.SetSlogLogger(log)
	return log
}

// Accepted are flags of nv-ipam's programs that have no effect here. A manifest that
// has them goes on working, and a value that is wrong for nv-ipam is wrong here.
type Accepted struct{ given []string }

// Flag accepts a flag with a value.
func (a *Accepted) Flag(fs *flag.FlagSet, name string, check func(value string) error) {
	fs.Func(name, "accepted for compatibility; has no effect", a.note(name, check))
}

// Switch accepts a flag that is true or false.
func (a *Accepted) Switch(fs *flag.FlagSet, name string) {
	fs.BoolFunc(name, "accepted for compatibility; has no effect", a.note(name, isBool))
}

func (a *Accepted) note(name string, check func(string) error) func(string) error {
	return func(value string) error {
		a.given = append(a.given, "--"+name+"="+value)
		return check(value)
	}
}

// Say says once which flags were given in vain.
func (a *Accepted) Say(log *slog.Logger) {
	if len(a.given) > 0 {
		log.Info("flags that are accepted for compatibility and have no effect", "flags", strings.Join(a.given, " "))
	}
}

func isBool(value string) error {
	_, err := strconv.ParseBool(value)
	if err != nil {
		err = fmt.Errorf("%q is neither true nor false", value)
	}
	return err
}

func isNumber(value string) error {
	_, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		err = fmt.Errorf("%q is no number", value)
	}
	return err
}

func isDuration(value string) error {
	_, err := time.ParseDuration(value)
	return err
}

func isQuantity(value string) error {
	_, err := resource.ParseQuantity(value)
	return err
}

// isList returns a check of a list a=b,c=d.
func isList(check func(value string) error) func(string) error {
	return func(list string) error {
		for _, item := range strings.Split(list, ",") {
			name, value, ok := strings.Cut(item, "=")
			switch {
			case strings.TrimSpace(item) == "": // as after a comma at the end
			case !ok || strings.TrimSpace(name) == "":
				return fmt.Errorf("%q has not the form NAME=VALUE", item)
			default:
				if err := check(strings.TrimSpace(value)); err != nil {
					return err
				}
			}
		}
		return nil
	}
}
