package sdk;

import com.fasterxml.jackson.databind.JsonNode;
import com.google.protobuf.ByteString;
import com.google.protobuf.Any;
import com.google.protobuf.Empty;
import com.google.protobuf.Int64Value;
import com.google.protobuf.StringValue;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpHandler;
import com.sun.net.httpserver.HttpServer;
import io.dapr.client.domain.CloudEvent;
import io.dapr.v1.AppCallbackGrpc;
import io.dapr.v1.CommonProtos.InvokeRequest;
import io.dapr.v1.CommonProtos.InvokeResponse;
import io.dapr.v1.DaprAppCallbackProtos.BindingEventRequest;
import io.dapr.v1.DaprAppCallbackProtos.BindingEventResponse;
import io.dapr.v1.DaprAppCallbackProtos.ListInputBindingsResponse;
import io.dapr.v1.DaprAppCallbackProtos.ListTopicSubscriptionsResponse;
import io.dapr.v1.DaprAppCallbackProtos.TopicEventRequest;
import io.dapr.v1.DaprAppCallbackProtos.TopicEventResponse;
import io.dapr.v1.DaprAppCallbackProtos.TopicEventResponse.TopicEventResponseStatus;
import io.dapr.v1.DaprAppCallbackProtos.TopicSubscription;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.MethodDescriptor;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;

/** An app in this process, on the callback types of the SDK. It keeps what it receives. */
final class App {
  static final List<String> TOPICS = List.of("plain", "raw", "flaky", "poison", "graveyard");

  /** A service that the SDK knows nothing of. */
  static final MethodDescriptor<StringValue, StringValue> GREET =
      MethodDescriptor.<StringValue, StringValue>newBuilder()
          .setType(MethodDescriptor.MethodType.UNARY)
          .setFullMethodName("shop.Greeter/Greet")
          .setRequestMarshaller(ProtoUtils.marshaller(StringValue.getDefaultInstance()))
          .setResponseMarshaller(ProtoUtils.marshaller(StringValue.getDefaultInstance()))
          .build();

  static final MethodDescriptor<Int64Value, Int64Value> COUNT =
      MethodDescriptor.<Int64Value, Int64Value>newBuilder()
          .setType(MethodDescriptor.MethodType.SERVER_STREAMING)
          .setFullMethodName("shop.Greeter/Count")
          .setRequestMarshaller(ProtoUtils.marshaller(Int64Value.getDefaultInstance()))
          .setResponseMarshaller(ProtoUtils.marshaller(Int64Value.getDefaultInstance()))
          .build();

  final String id;
  final AtomicInteger ticks = new AtomicInteger();
  private final Map<String, List<Event>> events = new ConcurrentHashMap<>();
  int port;

  /** An event that has arrived. */
  record Event(String id, String type, String source, String contentType, String pubsub, String topic, String data) {}

  private App(String id) {
    this.id = id;
  }

  /** Keeps an event; says what to answer. */
  private String keep(String box, Event event) {
    List<Event> kept = events.computeIfAbsent(box, name -> new ArrayList<>());
    long seen;
    synchronized (kept) {
      kept.add(event);
      seen = kept.stream().filter(other -> other.data.equals(event.data)).count();
    }
    return switch (box) {
      case "flaky" -> seen == 1 ? "RETRY" : "SUCCESS";
      case "poison" -> "DROP";
      default -> "SUCCESS";
    };
  }

  /** Waits until the app has received an event with this text in its data that often; returns the last of them. */
  Event received(String box, String text, int times) throws InterruptedException {
    AtomicReference<Event> last = new AtomicReference<>();
    Stage.until(id + " has " + box + " " + text, () -> {
      List<Event> kept = events.getOrDefault(box, List.of());
      synchronized (kept) {
        List<Event> found = kept.stream().filter(event -> event.data.contains(text)).toList();
        if (found.size() < times) {
          return false;
        }
        last.set(found.get(found.size() - 1));
        return true;
      }
    });
    return last.get();
  }

  static App overHttp() throws IOException {
    App app = new App("http-app");
    HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
    app.port = server.getAddress().getPort();
    server.setExecutor(Executors.newCachedThreadPool(App::daemon));
    List<Map<String, Object>> subscriptions = new ArrayList<>();
    for (String topic : TOPICS) {
      subscriptions.add(Map.of(
          "pubsubname", "pubsub",
          "topic", topic,
          "route", "/on/" + topic,
          "deadLetterTopic", topic.equals("poison") ? "graveyard" : "",
          "metadata", topic.equals("raw") ? Map.of("rawPayload", "true") : Map.of()));
    }
    byte[] offered = Stage.JSON.writeValueAsBytes(subscriptions);
    route(server, "/", 404, exchange -> new byte[0]);
    route(server, "/dapr/subscribe", 200, exchange -> offered);
    route(server, "/echo", 200, exchange -> {
      Map<String, String> answer = new ConcurrentHashMap<>();
      answer.put("app", app.id);
      answer.put("body", new String(exchange.getRequestBody().readAllBytes()));
      answer.put("verb", exchange.getRequestMethod());
      answer.put("caller", String.valueOf(exchange.getRequestHeaders().getFirst("dapr-caller-app-id")));
      answer.put("header", String.valueOf(exchange.getRequestHeaders().getFirst("x-mine")));
      answer.put("query", String.valueOf(exchange.getRequestURI().getRawQuery()));
      return Stage.JSON.writeValueAsBytes(answer);
    });
    route(server, "/fail", 409, exchange -> "{\"reason\": \"sold out\"}".getBytes());
    route(server, "/tick", 200, exchange -> {
      if (exchange.getRequestMethod().equals("POST")) {
        app.ticks.incrementAndGet();
      }
      return new byte[0];
    });
    for (String topic : TOPICS) {
      route(server, "/on/" + topic, 200, exchange -> app.arrived(topic, exchange));
    }
    for (String box : List.of("declared", "ruled/urgent", "ruled/large", "ruled/other")) {
      route(server, "/" + box, 200, exchange -> app.arrived(box, exchange));
    }
    server.start();
    return app;
  }

  /** What a route answers. */
  private interface Answer {
    byte[] to(HttpExchange exchange) throws IOException;
  }

  private static void route(HttpServer server, String path, int status, Answer answer) {
    HttpHandler handler = exchange -> {
      try (exchange) {
        byte[] body = answer.to(exchange);
        exchange.getRequestBody().readAllBytes();
        exchange.getResponseHeaders().set("Content-Type", "application/json");
        exchange.sendResponseHeaders(status, body.length == 0 ? -1 : body.length);
        exchange.getResponseBody().write(body);
      }
    };
    server.createContext(path, handler);
  }

  private byte[] arrived(String box, HttpExchange exchange) throws IOException {
    byte[] body = exchange.getRequestBody().readAllBytes();
    CloudEvent<?> event = CloudEvent.deserialize(body);
    JsonNode all = Stage.JSON.readTree(body);
    String data = event.getBinaryData() != null ? new String(event.getBinaryData()) : all.get("data").toString();
    String verdict = keep(box, new Event(event.getId(), event.getType(), event.getSource(), event.getDatacontenttype(),
        event.getPubsubName(), event.getTopic(), data));
    return Stage.JSON.writeValueAsBytes(Map.of("status", verdict));
  }

  static App overGrpc() throws IOException {
    App app = new App("grpc-app");
    var greeter = ServerServiceDefinition.builder("shop.Greeter")
        .addMethod(GREET, ServerCalls.asyncUnaryCall((StringValue name, StreamObserver<StringValue> out) -> {
          if (name.getValue().equals("nobody")) {
            out.onError(Status.NOT_FOUND.withDescription("nobody is here").asRuntimeException());
            return;
          }
          answer(out, StringValue.of("hello " + name.getValue()));
        }))
        .addMethod(COUNT, ServerCalls.asyncServerStreamingCall((Int64Value limit, StreamObserver<Int64Value> out) -> {
          for (long n = 0; n < limit.getValue(); n++) {
            out.onNext(Int64Value.of(n));
          }
          out.onCompleted();
        }))
        .build();
    app.port = Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
        .executor(Executors.newCachedThreadPool(App::daemon))
        .addService(app.new Callbacks())
        .addService(greeter)
        .build()
        .start()
        .getPort();
    return app;
  }

  private static Thread daemon(Runnable task) {
    Thread thread = new Thread(task);
    thread.setDaemon(true);
    return thread;
  }

  private static <T> void answer(StreamObserver<T> out, T value) {
    out.onNext(value);
    out.onCompleted();
  }

  private final class Callbacks extends AppCallbackGrpc.AppCallbackImplBase {
    @Override
    public void onInvoke(InvokeRequest request, StreamObserver<InvokeResponse> out) {
      if (!request.getMethod().equals("echo")) {
        out.onError(Status.ABORTED.withDescription("broken by intent").asRuntimeException());
        return;
      }
      try {
        byte[] body = Stage.JSON.writeValueAsBytes(Map.of(
            "app", id,
            "body", request.getData().getValue().toStringUtf8(),
            "verb", request.getHttpExtension().getVerb().name(),
            "query", request.getHttpExtension().getQuerystring()));
        answer(out, InvokeResponse.newBuilder()
            .setContentType("application/json")
            .setData(Any.newBuilder().setValue(ByteString.copyFrom(body)))
            .build());
      } catch (IOException error) {
        out.onError(error);
      }
    }

    @Override
    public void listTopicSubscriptions(Empty request, StreamObserver<ListTopicSubscriptionsResponse> out) {
      var all = ListTopicSubscriptionsResponse.newBuilder();
      for (String topic : TOPICS) {
        var one = TopicSubscription.newBuilder().setPubsubName("pubsub").setTopic(topic);
        if (topic.equals("poison")) {
          one.setDeadLetterTopic("graveyard");
        }
        if (topic.equals("raw")) {
          one.putMetadata("rawPayload", "true");
        }
        all.addSubscriptions(one);
      }
      answer(out, all.build());
    }

    @Override
    public void onTopicEvent(TopicEventRequest event, StreamObserver<TopicEventResponse> out) {
      String verdict = keep(event.getTopic(), new Event(event.getId(), event.getType(), event.getSource(),
          event.getDataContentType(), event.getPubsubName(), event.getTopic(), event.getData().toStringUtf8()));
      answer(out, TopicEventResponse.newBuilder().setStatus(TopicEventResponseStatus.valueOf(verdict)).build());
    }

    @Override
    public void listInputBindings(Empty request, StreamObserver<ListInputBindingsResponse> out) {
      answer(out, ListInputBindingsResponse.newBuilder().addBindings("tick").build());
    }

    @Override
    public void onBindingEvent(BindingEventRequest request, StreamObserver<BindingEventResponse> out) {
      ticks.incrementAndGet();
      answer(out, BindingEventResponse.getDefaultInstance());
    }
  }
}
