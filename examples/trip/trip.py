"""The saga of the tutorial."""

from sec_client import RetryPolicy, Saga, action

trip = Saga("trip")
trip.append_parallel(
    action("hotel", "book_hotel"),
    action("car", "rent_car"),
    action("flight", "book_flight", retry=RetryPolicy(max_attempts=3, attempt_timeout_s=10)),
)
trip.append(action("payment", "take_payment", reads=["hotel", "car", "flight"]))
