package com.example.actionserver;

import dev.sec.v1.ActionDescription;
import dev.sec.v1.ActionServerGrpc;
import dev.sec.v1.Call;
import dev.sec.v1.DescribeRequest;
import dev.sec.v1.DescribeResponse;
import dev.sec.v1.DoRequest;
import dev.sec.v1.DoResponse;
import dev.sec.v1.Payload;
import dev.sec.v1.UndoRequest;
import dev.sec.v1.UndoResponse;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.function.Function;
import java.util.stream.Collectors;

/** Keeps the obligations of the contract. Each call is one transaction: it remembers the epoch, has the effect, and marks the key with what it answers. */
final class ActionService extends ActionServerGrpc.ActionServerImplBase {
  private static final byte[] NO_ANSWER = {};

  private final String name;
  private final Map<String, Action> actions;
  private final Store store;

  ActionService(String name, List<Action> actions, Store store) {
    this.name = name;
    this.actions = actions.stream().collect(Collectors.toMap(Action::name, Function.identity()));
    this.store = store;
  }

  @Override
  public void describe(DescribeRequest message, StreamObserver<DescribeResponse> caller) {
    var answer = DescribeResponse.newBuilder().setServerName(name);
    for (Action action : actions.values()) {
      answer.addActions(ActionDescription.newBuilder().setName(action.name()).setSummary(action.summary()));
    }
    caller.onNext(answer.build());
    caller.onCompleted();
  }

  @Override
  public void do_(DoRequest message, StreamObserver<DoResponse> caller) {
    answer(
        caller,
        () -> {
          Action action = offered(message.getCall());
          action.preparation().apply(message);
          return store.inTransaction(db -> doOnce(action, message));
        });
  }

  @Override
  public void undo(UndoRequest message, StreamObserver<UndoResponse> caller) {
    answer(
        caller,
        () -> {
          Action action = offered(message.getCall());
          return store.inTransaction(db -> undoOnce(action, message));
        });
  }

  private DoResponse doOnce(Action action, DoRequest message) throws Exception {
    String key = message.getCall().getIdempotencyKey();
    store.rememberEpoch(message.getCall().getSagaUid(), message.getCall().getEpoch());
    Store.Known known = store.known(key);
    if (known != null) {
      return switch (known.mark()) {
        case DONE, FAILED -> DoResponse.parseFrom(known.answer());
        case UNDONE -> failed(new Action.Failed("It was undone before.", "undone"));
        case UNDO_FAILED -> throw Status.UNAVAILABLE.withDescription("Its undo has failed.").asException();
      };
    }
    DoResponse answer;
    Store.Mark mark = Store.Mark.DONE;
    try {
      Payload output = store.effect(db -> action.action().apply(db, message));
      answer = DoResponse.newBuilder().setOutput(output).build();
    } catch (Action.Failed failure) {
      answer = failed(failure);
      mark = Store.Mark.FAILED;
    } catch (Exception unknown) {
      throw Status.UNAVAILABLE.withDescription(unknown.toString()).asException();
    }
    store.remember(key, mark, answer.toByteArray());
    return answer;
  }

  private UndoResponse undoOnce(Action action, UndoRequest message) throws Exception {
    String key = message.getCall().getIdempotencyKey();
    store.rememberEpoch(message.getCall().getSagaUid(), message.getCall().getEpoch());
    Store.Known known = store.known(key);
    boolean tookEffect =
        known == null
            ? message.hasOutput()
            : known.mark() == Store.Mark.DONE || known.mark() == Store.Mark.UNDO_FAILED;
    if (tookEffect) {
      try {
        store.effect(
            db -> {
              action.undo().apply(db, message);
              return null;
            });
      } catch (Action.Failed failure) {
        store.remember(key, Store.Mark.UNDO_FAILED, known == null ? NO_ANSWER : known.answer());
        return UndoResponse.newBuilder().setFailure(failure.toProto()).build();
      } catch (Exception unknown) {
        throw Status.UNAVAILABLE.withDescription(unknown.toString()).asException();
      }
    }
    store.remember(key, Store.Mark.UNDONE, NO_ANSWER);
    return UndoResponse.getDefaultInstance();
  }

  private Action offered(Call call) throws StatusException {
    Action action = actions.get(call.getAction());
    if (action == null) {
      throw Status.UNIMPLEMENTED
          .withDescription("The action \"" + call.getAction() + "\" is not offered here.")
          .asException();
    }
    return action;
  }

  private static DoResponse failed(Action.Failed failure) {
    return DoResponse.newBuilder().setFailure(failure.toProto()).build();
  }

  private static <T> void answer(StreamObserver<T> caller, Callable<T> call) {
    // Without a handler, answering a caller that went away throws. Its call has run to the end, and the next one gets the answer.
    ((ServerCallStreamObserver<T>) caller).setOnCancelHandler(() -> {});
    T answer;
    try {
      answer = call.call();
    } catch (StatusException refusal) {
      caller.onError(refusal);
      return;
    } catch (Exception unknown) {
      caller.onError(Status.UNAVAILABLE.withDescription(unknown.toString()).asException());
      return;
    }
    caller.onNext(answer);
    caller.onCompleted();
  }
}
