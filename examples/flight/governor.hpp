// How much the model may read and say: less while deadlines are missed, more again when they are kept.
#pragma once

#include <cstddef>
#include <cstdint>

class Governor {
public:
  // What a question is asked with.
  struct Level {
    float keep;               // share of the visual tokens
    std::uint32_t max_tokens; // of the answer
  };
  Level level() const;
  std::size_t step() const { return step_; }
  // What came of the newest frame: whether its answer was whole, and the share of the time that it took.
  void saw(bool is_whole, double share);

private:
  std::size_t step_ = 0;
  unsigned calm_ = 0; // answers in a row with time to spare
};
