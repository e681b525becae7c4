package com.example.actionserver;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.protobuf.ByteString;
import dev.sec.v1.Payload;

/** Payloads that are JSON. */
final class Json {
  private static final Gson GSON = new GsonBuilder().disableHtmlEscaping().create();

  static <T> T decoded(Payload payload, Class<T> type) {
    return GSON.fromJson(payload.getData().toStringUtf8(), type);
  }

  static Payload payload(Object value) {
    return Payload.newBuilder().setContentType("application/json").setData(ByteString.copyFromUtf8(GSON.toJson(value))).build();
  }

  private Json() {}
}
