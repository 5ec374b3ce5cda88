package sdk

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	dapr "github.com/dapr/go-sdk/client"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func echoes(t *testing.T, appID string) {
	t.Helper()
	content := &dapr.DataContent{Data: []byte(`{"n": 1}`), ContentType: "application/json"}
	body, err := client.InvokeMethodWithContent(testContext(t), appID, "echo?a=1&b=two%20words", "POST", content)
	must(t, err)
	var got echoed
	must(t, json.Unmarshal(body, &got))
	equal(t, "answer", got, echoed{appID, `{"n": 1}`, "application/json", "POST", "a=1&b=two%20words"})
	body, err = client.InvokeMethod(testContext(t), appID, "echo", "GET")
	must(t, err)
	must(t, json.Unmarshal(body, &got))
	equal(t, "body", got.Body, "")
	equal(t, "verb", got.Verb, "GET")
}

func TestInvokeHttpApp(t *testing.T) { echoes(t, "http-app") }

func TestInvokeGrpcApp(t *testing.T) { echoes(t, "grpc-app") }

func TestInvokeErrorOfApp(t *testing.T) {
	_, err := client.InvokeMethod(testContext(t), "http-app", "fail", "POST")
	failed(t, err, codes.AlreadyExists, "")
	_, err = client.InvokeMethod(testContext(t), "grpc-app", "broken", "POST")
	failed(t, err, codes.Unknown, "broken by intent")
}

func TestInvokeUnknownApp(t *testing.T) {
	_, err := client.InvokeMethod(testContext(t), "nobody", "echo", "POST")
	failed(t, err, codes.Internal, "nobody")
}

func TestInvokeByProxy(t *testing.T) {
	ctx := metadata.AppendToOutgoingContext(testContext(t), "dapr-app-id", "grpc-app")
	connection := client.GrpcClientConn()
	var trailer metadata.MD
	answer := new(wrapperspb.StringValue)
	must(t, connection.Invoke(ctx, "/shop.Greeter/Greet", wrapperspb.String("world"), answer, grpc.Trailer(&trailer)))
	equal(t, "answer", answer.Value, "hello world")
	equal(t, "trailer", strings.Join(trailer.Get("greeted-by"), ","), "grpc-app")
	err := connection.Invoke(ctx, "/shop.Greeter/Greet", wrapperspb.String("nobody"), answer)
	failed(t, err, codes.NotFound, "nobody is here")

	ctx = metadata.AppendToOutgoingContext(ctx, "dapr-stream", "true")
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/shop.Greeter/Count")
	must(t, err)
	must(t, stream.SendMsg(wrapperspb.String("1000")))
	must(t, stream.CloseSend())
	for want := range int64(1000) {
		n := new(wrapperspb.Int64Value)
		must(t, stream.RecvMsg(n))
		equal(t, "number", n.Value, want)
	}
	equal(t, "end", stream.RecvMsg(new(wrapperspb.Int64Value)), io.EOF)
}

func files(t *testing.T, operation, data, name string) ([]byte, error) {
	t.Helper()
	request := &dapr.InvokeBindingRequest{Name: "files", Operation: operation, Data: []byte(data)}
	if name != "" {
		request.Metadata = map[string]string{"fileName": name}
	}
	answer, err := client.InvokeBinding(testContext(t), request)
	if err != nil {
		return nil, err
	}
	return answer.Data, nil
}

func TestBindingOutput(t *testing.T) {
	name := uuid.NewString() + ".txt"
	_, err := files(t, "create", "a text", name)
	must(t, err)
	data, err := files(t, "get", "", name)
	must(t, err)
	equal(t, "text", string(data), "a text")
	data, err = files(t, "list", "", "")
	must(t, err)
	var names []string
	must(t, json.Unmarshal(data, &names))
	equal(t, "is listed", slices.Contains(names, name), true)
	_, err = files(t, "delete", "", name)
	must(t, err)
	_, err = files(t, "get", "", name)
	failed(t, err, codes.Internal, "error invoking output binding files")
}

func ticksGoOn(t *testing.T, a *app) {
	first := a.ticked()
	until(t, a.id+" gets ticks", func() bool { return a.ticked() > first })
}

func TestBindingInputHttpApp(t *testing.T) { ticksGoOn(t, httpApp) }

func TestBindingInputGrpcApp(t *testing.T) { ticksGoOn(t, grpcApp) }

func TestBindingUnknown(t *testing.T) {
	err := client.InvokeOutputBinding(testContext(t), &dapr.InvokeBindingRequest{Name: "nowhere", Operation: "create"})
	failed(t, err, codes.Internal, "couldn't find output binding nowhere")
	equal(t, "reason", reason(err), "ERR_INVOKE_OUTPUT_BINDING")
}

func TestBindingUnknownOperation(t *testing.T) {
	_, err := files(t, "paint", "x", "")
	failed(t, err, codes.InvalidArgument, "binding files does not support operation paint")
}
