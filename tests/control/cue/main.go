// Evaluates the CUE of a definition as KubeVela does: the template, the context of a component and the properties of
// its trait are one text. Prints the value at a path as one line of JSON.
//
//	cue TEMPLATE PATH CONTEXT PROPERTIES
//
// The first names a file, the last two are JSON.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/cuecontext"
	"cuelang.org/go/cue/errors"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprint(os.Stderr, errors.Details(err, nil))
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("usage: cue TEMPLATE PATH CONTEXT PROPERTIES")
	}
	template, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s\ncontext: %s\nparameter: %s\n", template, args[2], args[3])
	value := cuecontext.New().CompileString(text, cue.Filename(args[0])).LookupPath(cue.ParsePath(args[1]))
	if err := value.Validate(cue.Concrete(true), cue.Final()); err != nil {
		return err
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(encoded))
	return err
}
