package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/dapr/go-sdk/service/common"
	daprgrpc "github.com/dapr/go-sdk/service/grpc"
	daprhttp "github.com/dapr/go-sdk/service/http"
	"github.com/go-chi/chi/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// What "echo" answers.
type echoed struct {
	App         string `json:"app"`
	Body        string `json:"body"`
	ContentType string `json:"contentType"`
	Verb        string `json:"verb"`
	Query       string `json:"query"`
}

func newHTTPApp() (*app, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	a := &app{id: "http-app", port: port, events: map[string][]event{}}
	router := chi.NewRouter()
	router.Post("/fail", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, `{"reason": "sold out"}`)
	})
	// Routes of the Subscription documents; the SDK would subscribe to their topics once more.
	for _, route := range []string{"declared", "ruled/urgent", "ruled/large", "ruled/other"} {
		router.Post("/"+route, func(w http.ResponseWriter, r *http.Request) {
			var in struct {
				ID   string          `json:"id"`
				Data json.RawMessage `json:"data"`
			}
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			a.keep(route, event{ID: in.ID, Data: in.Data})
		})
	}
	service := daprhttp.NewServiceWithMux("127.0.0.1:"+port, router)
	if err := a.offer(service, "/"); err != nil {
		return nil, err
	}
	go a.serve(service)
	return a, nil
}

func newGRPCApp() (*app, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return nil, err
	}
	a := &app{id: "grpc-app", port: port, events: map[string][]event{}}
	server := grpc.NewServer()
	server.RegisterService(&greeter, nil)
	service := daprgrpc.NewServiceWithGrpcServer(listener, server)
	if err := a.offer(service, ""); err != nil {
		return nil, err
	}
	go a.serve(service)
	return a, nil
}

func (a *app) serve(service common.Service) {
	if err := service.Start(); err != nil {
		panic(fmt.Sprintf("%s: %v", a.id, err))
	}
}

// Registers what both apps offer; names of an HTTP app begin with a slash.
func (a *app) offer(service common.Service, prefix string) error {
	failed := service.AddServiceInvocationHandler(prefix+"echo", a.echo)
	failed = errors.Join(failed, service.AddServiceInvocationHandler(prefix+"broken",
		func(context.Context, *common.InvocationEvent) (*common.Content, error) {
			return nil, errors.New("broken by intent")
		}))
	failed = errors.Join(failed, service.AddBindingInvocationHandler(prefix+"tick",
		func(context.Context, *common.BindingEvent) ([]byte, error) {
			a.tick()
			return nil, nil
		}))
	for topic, verdict := range map[string]func(seen int) (retry bool, err error){
		"plain":     func(int) (bool, error) { return false, nil },
		"raw":       func(int) (bool, error) { return false, nil },
		"graveyard": func(int) (bool, error) { return false, nil },
		"poison":    func(int) (bool, error) { return false, errors.New("not to be had") },
		"flaky": func(seen int) (bool, error) {
			if seen == 1 {
				return true, errors.New("once more")
			}
			return false, nil
		},
	} {
		subscription := &common.Subscription{PubsubName: "pubsub", Topic: topic, Route: "/on/" + topic}
		switch topic {
		case "raw":
			subscription.Metadata = map[string]string{"rawPayload": "true"}
		case "poison":
			subscription.DeadLetterTopic = "graveyard"
		}
		failed = errors.Join(failed, service.AddTopicEventHandler(subscription,
			func(_ context.Context, e *common.TopicEvent) (bool, error) {
				return verdict(a.keep(topic, kept(e)))
			}))
	}
	// Rules that the app itself gives.
	for priority, rule := range []struct{ match, box string }{
		{`event.type == "urgent"`, "chosen/urgent"},
		{"event.data.amount > 100", "chosen/large"},
		{"", "chosen/other"},
	} {
		subscription := &common.Subscription{
			PubsubName: "pubsub", Topic: "chosen", Route: "/on/" + rule.box, Match: rule.match, Priority: priority,
		}
		failed = errors.Join(failed, service.AddTopicEventHandler(subscription,
			func(_ context.Context, e *common.TopicEvent) (bool, error) {
				a.keep(rule.box, kept(e))
				return false, nil
			}))
	}
	return failed
}

func (a *app) echo(_ context.Context, in *common.InvocationEvent) (*common.Content, error) {
	body, err := json.Marshal(echoed{a.id, string(in.Data), in.ContentType, in.Verb, in.QueryString})
	return &common.Content{Data: body, ContentType: "application/json"}, err
}

func kept(e *common.TopicEvent) event {
	return event{e.ID, e.Type, e.Source, e.DataContentType, e.PubsubName, e.Topic, e.RawData}
}

// A service that the SDK knows nothing of.
var greeter = grpc.ServiceDesc{
	ServiceName: "shop.Greeter",
	Methods: []grpc.MethodDesc{{
		MethodName: "Greet",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			name := new(wrapperspb.StringValue)
			if err := decode(name); err != nil {
				return nil, err
			}
			if name.Value == "nobody" {
				return nil, status.Error(codes.NotFound, "nobody is here")
			}
			if err := grpc.SetTrailer(ctx, metadata.Pairs("greeted-by", "grpc-app")); err != nil {
				return nil, err
			}
			return wrapperspb.String("hello " + name.Value), nil
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName:    "Count",
		ServerStreams: true,
		ClientStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error {
			limit := new(wrapperspb.StringValue)
			if err := stream.RecvMsg(limit); err != nil {
				return err
			}
			count, err := strconv.Atoi(limit.Value)
			if err != nil {
				return status.Error(codes.InvalidArgument, err.Error())
			}
			for n := range count {
				if err := stream.SendMsg(wrapperspb.Int64(int64(n))); err != nil {
					return err
				}
			}
			return nil
		},
	}},
}
