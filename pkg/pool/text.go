// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of texts that people read, in bytes. What is longer is cut, with a count.
const (
	maxErrors   = 10  // of a specification
	maxError    = 400 // each of them
	maxSelector = 400
	maxNames    = 10 // of Enumerate
)

// Cut returns a text of at most about the given number of bytes: what is missing
// is counted at its end.
func Cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + fmt.Sprintf("... (%d bytes more)", len(text)-most)
}

// Enumerate names the first few of many.
func Enumerate(names []string) string { return enumerate(names, maxNames, "%s") }

func enumerate(names []string, most int, format string) string {
	var first []string
	for _, n := range names[:min(len(names), most)] {
		first = append(first, fmt.Sprintf(format, n))
	}
	text := strings.Join(first, ", ")
	if more := len(names) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// Printable returns a text as it may be shown on a terminal, or in a comment, in one line. Whoever
// may create pods, events or networks writes some of them.
func Printable(text string) string {
	if strings.ContainsAny(text, "\r\n") {
		text = oneLine(text)
	}
	var out strings.Builder
	for _, r := range text {
		switch {
		case unicode.IsPrint(r):
			out.WriteRune(r)
		case unicode.IsSpace(r):
			out.WriteByte(' ')
		default:
			out.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	return out.String()
}

func oneLine(text string) string {
	var lines []string
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// EscapeJSON escapes in JSON what need not be, and a terminal takes for a command: other people's
// texts are in it. The format of an escape, of a rune, is \u%04x where JSON is wanted.
func EscapeJSON(text, format string) string {
	var out strings.Builder
	for _, r := range text {
		if r >= 0x7f && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			fmt.Fprintf(&out, format, r)
			continue
		}
		out.WriteRune(r)
	}
	return out.String()
}

// Explain says what is wrong with a specification: the first errors, and how many
// more there are.
func Explain(errs field.ErrorList) string {
	var texts []string
	for _, e := range errs[:min(len(errs), maxErrors)] {
		text := e.Error()
		if len(text) > maxError { // the value is what is long
			value := fmt.Sprint(e.BadValue)
			if json, err := json.Marshal(e.BadValue); err == nil {
				value = string(json)
			}
			text = fmt.Sprintf("%s: %s: %s: %s", e.Field, e.Type, Cut(value, maxError/2), Cut(e.Detail, maxError/2))
		}
		if !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	if len(texts) == 1 && len(errs) <= maxErrors {
		return texts[0]
	}
	if more := len(errs) - maxErrors; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

// SelectorText says which nodes the pool's selector matches, "" for all of them.
func (p *Pool) SelectorText() string {
	if p.terms == nil {
		return ""
	}
	var terms []string
	for _, t := range p.terms.NodeSelectorTerms {
		var parts []string
		for _, e := range slices.Concat(t.MatchFields, t.MatchExpressions) {
			parts = append(parts, requirementText(e))
		}
		if len(parts) > 0 { // an empty term matches no node
			terms = append(terms, strings.Join(parts, " and "))
		}
	}
	return Cut(strings.Join(terms, ", or "), maxSelector)
}

func requirementText(e corev1.NodeSelectorRequirement) string {
	values := strings.Join(e.Values, ", ")
	switch e.Operator {
	case corev1.NodeSelectorOpExists:
		return e.Key + " exists"
	case corev1.NodeSelectorOpDoesNotExist:
		return e.Key + " does not exist"
	case corev1.NodeSelectorOpIn:
		return e.Key + " in (" + values + ")"
	case corev1.NodeSelectorOpNotIn:
		return e.Key + " not in (" + values + ")"
	}
	return e.Key + " " + string(e.Operator) + " " + values
}
