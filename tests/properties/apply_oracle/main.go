// Command apply_oracle answers what Kubernetes' own field manager makes of an apply or update.
//
// The first line on stdin is an OpenAPI document's definitions by name; each other line is a question
//
//	{"kind": K, "op": "apply"|"update", "live": OBJECT|null, "object": OBJECT, "manager": M, "force": B,
//	 "subresource": S, "reset": [[FIELD, ...], ...]}
//
// and each line on stdout an answer: {"object": OBJECT}, {"conflicts": [[MANAGER, PATH], ...], "message": TEXT} or
// {"error": TEXT}. The times that the field manager sets are the real ones.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

var groupVersion = schema.GroupVersion{Group: "projectcalico.org", Version: "v3"}

type question struct {
	Kind        string
	Op          string
	Live        map[string]any
	Object      map[string]any
	Manager     string
	Force       bool
	Subresource string
	Reset       [][]string
}

type answer struct {
	Object    map[string]any `json:"object,omitempty"`
	Conflicts [][2]string    `json:"conflicts,omitempty"`
	Message   string         `json:"message,omitempty"`
	Error     string         `json:"error,omitempty"`
}

// passing converts nothing: there is one version.
type passing struct{}

func (passing) Convert(in, out, context any) error { return errors.New("not used") }
func (passing) ConvertToVersion(in runtime.Object, gv runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
}
func (passing) ConvertFieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}
func (passing) Default(in runtime.Object) {}
func (passing) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	made := &unstructured.Unstructured{}
	made.SetGroupVersionKind(kind)
	return made, nil
}

func main() {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	line, err := in.ReadBytes('\n')
	exitOn(err)
	definitions := map[string]*spec.Schema{}
	exitOn(json.Unmarshal(line, &definitions))
	types, err := managedfields.NewTypeConverter(definitions, false)
	exitOn(err)
	out := json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var asked question
		exitOn(json.Unmarshal(line, &asked))
		exitOn(out.Encode(asked.answer(types)))
	}
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (q question) answer(types managedfields.TypeConverter) answer {
	kind := groupVersion.WithKind(q.Kind)
	reset := map[fieldpath.APIVersion]fieldpath.Filter{}
	if len(q.Reset) > 0 {
		set := fieldpath.NewSet()
		for _, path := range q.Reset {
			elements := fieldpath.Path{}
			for _, name := range path {
				elements = append(elements, fieldpath.FieldNameElement(name))
			}
			set.Insert(elements)
		}
		reset[fieldpath.APIVersion(groupVersion.String())] = fieldpath.NewExcludeSetFilter(set)
	}
	manager, err := managedfields.NewDefaultCRDFieldManager(
		types, passing{}, passing{}, passing{}, kind, groupVersion, q.Subresource, reset)
	exitOn(err)
	live := &unstructured.Unstructured{Object: integers(q.Live)}
	if q.Live == nil {
		live = &unstructured.Unstructured{}
		live.SetGroupVersionKind(kind)
	}
	object := &unstructured.Unstructured{Object: integers(q.Object)}
	var found runtime.Object
	if q.Op == "apply" {
		found, err = manager.Apply(live, object, q.Manager, q.Force)
	} else {
		found, err = manager.Update(live, object, q.Manager)
	}
	if err != nil {
		return failed(err)
	}
	return answer{Object: found.(*unstructured.Unstructured).Object}
}

func failed(err error) answer {
	var status *apierrors.StatusError
	if !errors.As(err, &status) || status.ErrStatus.Reason != metav1.StatusReasonConflict {
		return answer{Error: err.Error()}
	}
	said := answer{Message: status.ErrStatus.Message}
	for _, cause := range status.ErrStatus.Details.Causes {
		said.Conflicts = append(said.Conflicts, [2]string{strings.TrimPrefix(cause.Message, "conflict with "), cause.Field})
	}
	return said
}

// integers is value with whole numbers as int64, which unstructured objects need.
func integers(value map[string]any) map[string]any {
	if value == nil {
		return nil
	}
	return whole(value).(map[string]any)
}

func whole(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for name, member := range value {
			value[name] = whole(member)
		}
	case []any:
		for index, item := range value {
			value[index] = whole(item)
		}
	case float64:
		if value == float64(int64(value)) {
			return int64(value)
		}
	}
	return value
}
